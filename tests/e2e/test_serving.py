"""An exported model in an environment that has only what its requirements name: no torch.

The container's recipe is followed step by step, and `./scripts/verify` where only numpy and
onnxruntime are.
"""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.metadata import requires
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from tests.exported import write_classifier

ROOT = Path(__file__).parents[2]
RECIPE = (ROOT / "scripts/serving/Containerfile").read_text()
REQUIREMENTS = ROOT / "scripts/serving/requirements.txt"
NO_TORCH = "from importlib.util import find_spec; raise SystemExit(find_spec('torch') is not None)"


def pins(path):
    """Return the lines of a lock file by package: its version, then its hashes."""
    blocks = re.split(r"(?m)^(?=\w)", path.read_text())[1:]
    lines = ([line for line in block.splitlines() if "#" not in line] for block in blocks)
    return {pinned[0].partition("==")[0]: pinned for pinned in lines}


def test_what_the_container_installs_is_all_that_is_needed_at_the_lock_files_versions():
    listed = pins(REQUIREMENTS)
    assert listed.items() <= pins(ROOT / "requirements.lock").items()
    needed = set()

    def add(name):
        if name not in needed:
            needed.add(name)
            for text in requires(name) or ():
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    add(canonicalize_name(requirement.name))

    for name in ("fastapi", "numpy", "onnxruntime", "pillow", "python-multipart", "uvicorn"):
        add(name)
    assert needed <= listed.keys()


def environment(folder, *packages):
    """Make a virtual environment with these packages alone, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
    installed = subprocess.run([*pip, *packages], check=False, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"pip can't install here: {installed.stderr.strip().splitlines()[-1]}")
    subprocess.run([python, "-c", NO_TORCH], check=True)
    return python


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_containers_recipe_serves_without_torch(tmp_path):
    place = tmp_path / "folkmoot"
    for line in re.findall(r"^COPY (.*)", RECIPE, re.MULTILINE):
        source, target = line.split()
        if (ROOT / source).is_dir():
            left_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / source, place / target, ignore=left_out, dirs_exist_ok=True)
        else:
            (place / target).mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, place / target)
    (install,) = re.findall(r"^RUN python -m pip install (.*)", RECIPE, re.MULTILINE)
    flags = shlex.split(install)
    assert flags[-1] == "scripts/serving/requirements.txt"
    python = environment(tmp_path / "venv", "--requirement", place / flags[-1])
    (entry,) = re.findall(r"^ENTRYPOINT (.*)", RECIPE, re.MULTILINE)
    _, *command = json.loads(entry)
    model = write_classifier(tmp_path / "tiny.onnx")
    process = subprocess.Popen(
        [python, *command, model, "--bind", "127.0.0.1:0"],
        cwd=place,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stdout.readline().split()[3]
        (check,) = re.findall(r"^HEALTHCHECK .*CMD (.*)", RECIPE, re.MULTILINE)
        probe = json.loads(check)[2].replace("http://127.0.0.1:7080", url)
        subprocess.run([python, "-c", probe], check=True, timeout=60)
        found = httpx.post(f"{url}/predict", json={"inputs": [[[[1, 1], [1, 1]]]]}, timeout=60)
        assert found.json()["predictions"][0][0]["label"] == "light"
        file = BytesIO()
        Image.new("L", (9, 9)).save(file, "PNG")
        files = {"file": file.getvalue()}
        found = httpx.post(f"{url}/predict", files=files, timeout=60)
        assert found.json()["predictions"][0][0]["label"] == "dark"
        assert "<title>" in httpx.get(f"{url}/docs", timeout=60).text
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_model_is_verified_where_only_numpy_and_onnxruntime_are(tmp_path):
    wanted = pins(ROOT / "requirements.lock")
    versions = (wanted[name][0].removesuffix(" \\") for name in ("numpy", "onnxruntime"))
    python = environment(tmp_path / "venv", *versions)
    model = write_classifier(tmp_path / "tiny.onnx")
    command = [python, "-m", "scripts.serving.verify", model]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[1] for line in done.stdout.splitlines()] == [
        *("digest", "metadata", "load", "run")
    ]
    model.write_bytes(model.read_bytes() + b"\0")
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
