"""Every shell file in scripts/ runs its command where the user stands."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
SHELLS = sorted(
    path.name
    for path in SCRIPTS.iterdir()
    if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash")
)
# Those are about the clone itself.
AT_HOME = {"generate_protos", "install", "lock", "test"}

_PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$PWD" "${PYTHONSAFEPATH:-}" "${PYTHONPATH:-}" "$@"
"""


@pytest.fixture
def clone(tmp_path):
    """Return a clone whose environment is made, and whose Python says how it was called."""
    root = tmp_path / "a clone"
    shutil.copytree(SCRIPTS, root / "scripts", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (root / "pyproject.toml").touch()
    (root / "requirements.lock").touch()
    (root / ".venv" / "bin").mkdir(parents=True)
    python = root / ".venv" / "bin" / "python"
    python.write_text(_PYTHON)
    python.chmod(0o755)
    made = "cat pyproject.toml requirements.lock | cksum"
    stamp = subprocess.run(made, shell=True, cwd=root, capture_output=True, check=True).stdout  # noqa: S602
    for extra in ("", "-dashboard", "-lesson", "-mlflow", "-onnx", "-serve"):
        (root / ".venv" / f"installed{extra}").write_bytes(stamp)
    return root


def call(script, folder, **variables):
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [script, "--flag", "two words"],
        cwd=folder,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", [name for name in SHELLS if name not in AT_HOME])
def test_a_command_runs_where_the_user_stands_and_none_of_their_folders_in_its_place(
    name, clone, tmp_path
):
    folder = tmp_path / "own"
    folder.mkdir()
    where, safe, path, *arguments = call(clone / "scripts" / name, folder, PYTHONPATH="/mine")
    assert where == str(folder)
    assert (bool(safe), path) == (True, f"{clone}:/mine")
    assert arguments[0] == "-m"
    assert arguments[-2:] == ["--flag", "two words"]


def test_a_command_is_found_by_a_relative_path_whatever_CDPATH_says(clone):  # noqa: N802
    where, *_ = call("../scripts/admin", clone / ".venv", CDPATH=str(clone))
    assert where == str(clone / ".venv")


def test_what_any_extra_installed_is_not_installed_again_for_a_command_without_one(clone):
    installed = clone / ".venv" / "installed"
    installed.rename(clone / ".venv" / "installed-dev")
    call(clone / "scripts" / "admin", clone)
    assert not installed.exists()
