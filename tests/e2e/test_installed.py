"""Folkmoot from its wheel, in an environment and a folder that know nothing of the clone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from server.storage.run_files import read_json
from tests.e2e.harness import json_lines, until

ROOT = Path(__file__).parents[2]
_FOLDERS = ("protos", "server", "client", "common", "scripts")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return the folder of the wheel's commands; what it needs is that of the tests themselves."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    for folder in _FOLDERS:
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet"]
    flags = ["--no-deps", "--no-build-isolation", "--wheel-dir", place]
    subprocess.run([*pip, "wheel", *flags, source], check=True)
    (wheel,) = place.glob("*.whl")
    shutil.rmtree(source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], check=True)
    python = place / "venv" / "bin" / "python"
    (site,) = (place / "venv").glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("".join(f"{path}\n" for path in others))
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    return python.parent


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Go to an empty folder."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def output(*command):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.full
def test_a_server_and_a_client_train_and_the_run_is_reported(installed, own):
    # What a user may well have, and what Folkmoot must not take for its own.
    for name in ("server.py", "common.py", "scripts.py"):
        (own / name).write_text("raise SystemExit('not this one')\n")
    flags = ["--rounds", "2", "--num-partitions", "2", "--run-dir", "run", "--bind", "127.0.0.1:0"]
    with (own / "log").open("w") as log:
        server = subprocess.Popen([installed / "folkmoot-server", *flags], stderr=log, stdout=log)
        try:
            ready = until(lambda: read_json(own / "run" / "server.json"), "the server to listen")
            output(
                *(installed / "folkmoot-client", "--server", ready["address"]),
                *("--partition", "0-1"),
            )
            assert server.wait(60) == 0, (own / "log").read_text()
        finally:
            server.kill()
            server.wait()
    assert [row["round"] for row in json_lines(own / "run" / "metrics.jsonl")] == [1, 2]
    output(installed / "folkmoot", "report", "run")
    assert {"report.html", "README.md", "convergence.png"} <= {
        path.name for path in (own / "run" / "report").iterdir()
    }
    assert "run" in output(installed / "folkmoot", "predict", "--help")


@pytest.mark.full
def test_quickstart_says_how_to_go_on_without_a_clone(installed, own):
    out = output(installed / "folkmoot", "quickstart", "--rounds", "1", "--run-dir", "run")
    again = "Go on:   folkmoot quickstart --run-dir run --resume --rounds 2"
    assert out.splitlines()[-1] == again


@pytest.mark.full
def test_the_package_has_what_the_tools_read_and_its_types(installed, own):
    code = (
        "import json, sys, protos, server, client, common, scripts; from pathlib import Path;"
        "roots = [Path(p.__file__).parent for p in (protos, server, client, common, scripts)];"
        "print(json.dumps([str(f) for root in roots for f in root.rglob('*') if f.is_file()]))"
    )
    (site,) = installed.parent.glob("lib/python*/site-packages")
    paths = map(Path, json.loads(output(installed / "python", "-c", code)))
    found = {str(path.relative_to(site)) for path in paths}
    assert {
        *(f"{package}/py.typed" for package in ("protos", "server", "client", "common")),
        "protos/federated.proto",
        "protos/federated_pb2.pyi",
        "common/tasks/vocabulary.txt",
        "scripts/grafana.json",
        "scripts/reporting/page.html",
        "scripts/serving/page.html",
        "scripts/serving/requirements.txt",
        "scripts/teaching/lesson.ipynb",
    } <= found
    for tool in ("folkmoot-server", "folkmoot-client"):
        assert "Usage:" in output(installed / tool, "--help")
    assert os.listdir(own) == []  # noqa: PTH208
    assert output(installed / "folkmoot", "--version") == "0.1.0\n"
