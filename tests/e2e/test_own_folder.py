"""Commands in a folder of one's own, with a task, data and packages of the same names in it."""

import os
import subprocess
import sys

import pytest

from tests.e2e.harness import PATIENCE, ROOT, json_lines

_TASK = """
import torch
from torch import nn

from common.tasks import Examples, Task


class Mine(Task):
    models = {"linear": lambda: nn.Linear(4, 3)}

    def data(self, data_dir, train):
        seed = int((data_dir / "seed").read_text())
        inputs = torch.randn(90, 4, generator=torch.Generator().manual_seed(seed))
        return Examples(inputs, inputs[:, :3].argmax(1))
"""
PACKAGES = ("protos", "server", "client", "common", "scripts")


@pytest.fixture
def own(tmp_path):
    """Return a folder with a task, its data, and a package of each of our names."""
    folder = tmp_path / "own"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "seed").write_text("7")
    (folder / "mine.py").write_text(_TASK)
    for name in PACKAGES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    return folder


def run(folder, *words, **variables):
    done = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env=dict(os.environ) | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_quickstart_trains_a_task_on_data_and_into_runs_of_ones_own_folder(own):
    flags = ("--task", "mine:Mine", "--rounds", 2, "--num-partitions", 2, "--data-dir", "data")
    status, out, err = run(own, ROOT / "scripts" / "quickstart", *flags)
    assert status == 0, out + err
    (folder,) = (own / "runs").iterdir()
    assert [row["round"] for row in json_lines(folder / "metrics.jsonl")] == [1, 2]
    # The line that says how to go on is that of this folder.
    again = out.splitlines()[-1].removeprefix("Go on:   ").split()
    status, out, err = run(own, *again)
    assert status == 0, out + err
    assert len(json_lines(folder / "metrics.jsonl")) == 4


def test_a_run_finds_its_data_from_any_folder_and_says_where_they_are_not(own, tmp_path):
    flags = ("--task", "mine:Mine", "--rounds", 1, "--num-partitions", 2, "--data-dir", "data")
    status, out, err = run(own, ROOT / "scripts" / "quickstart", *flags, "--run-dir", "run")
    assert status == 0, out + err
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = {"PYTHONPATH": str(own)}
    resume = ("--run-dir", "../own/run", "--resume", "--rounds", 2, "--task", "mine:Mine")
    status, out, err = run(elsewhere, ROOT / "scripts" / "quickstart", *resume, **path)
    assert status == 0, out + err
    assert len(json_lines(own / "run" / "metrics.jsonl")) == 2
    module = (sys.executable, "-P", "-m", "scripts.exporting", "../own/run")
    how = ("--format", "safetensors", "--task", "mine:Mine")
    path["PYTHONPATH"] = f"{ROOT}{os.pathsep}{own}"
    status, out, err = run(elsewhere, *module, *how, **path)
    assert (status, err) == (0, "")
    assert "90 examples" in out
    (own / "data").rename(tmp_path / "gone")
    status, out, err = run(elsewhere, *module, *how, **path)
    assert (status, out) == (2, "")
    assert err == (
        f"error: --data-dir: there is no held-out data in {own / 'data'}, and the task's `inputs` "
        "do not say what a model takes; name the folder of the data\n"
    )


# `python -m` where Folkmoot is installed: the clone comes after all that is in the current folder.
_INSTALLED = f"""
import runpy, sys
sys.path = ["", *(path for path in sys.path if path not in ("", {str(ROOT)!r})), {str(ROOT)!r}]
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("program", ["server", "client"])
def test_the_programs_run_beside_packages_of_the_other_names(own, program):
    # What is no Python package may have its own name, too.
    (own / program / "__init__.py").unlink()
    status, out, err = run(own, sys.executable, "-c", _INSTALLED, program, "--help")
    assert status == 0, err
    assert "--data-dir" in out


def test_a_package_of_ones_own_that_a_task_wants_but_that_has_our_name_is_one_line(own):
    (own / "common" / "mine.py").write_text(_TASK)
    (own / "theirs.py").write_text("from common.mine import Mine")
    for task in ("theirs:Mine", "common.mine:Mine", "client:Mine"):
        status, out, err = run(own, ROOT / "scripts" / "show_split", "--task", task)
        package = "client" if task.startswith("client") else "common"
        assert (status, out, len(err.splitlines())) == (2, "", 1)
        assert f"{package} is a package of Folkmoot's" in err
