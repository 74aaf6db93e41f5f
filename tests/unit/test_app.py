"""What a server says at its start of the runs that are there."""

import json
from pathlib import Path

import pytest

from server.app import mention_interrupted
from server.configuration import parse


@pytest.fixture
def before(tmp_path, monkeypatch):
    """A run of the digits that did not end, in the runs/ of the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/before")
    (folder / "models").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"options": {"task": "digits"}}))
    return folder


def said(capsys, *argv):
    mention_interrupted(parse(argv))
    return capsys.readouterr().out


def test_a_new_run_says_how_to_go_on_with_one_that_was_interrupted(before, capsys):
    assert f"--run-dir {before} --resume" in said(capsys)
    assert f"--run-dir {before} --resume" in said(capsys, "--run-dir", "runs/mine")


def test_nothing_is_said_of_another_task_or_a_run_elsewhere(before, capsys):
    assert said(capsys, "--task", "mnist") == ""
    assert said(capsys, "--run-dir", "elsewhere/mine") == ""
    assert said(capsys, "--run-dir", str(before)) == ""


def test_nothing_is_said_of_a_run_that_has_ended_or_is_damaged(before, capsys):
    (before / "models" / "global.pth").touch()
    assert said(capsys) == ""
    (before / "models" / "global.pth").unlink()
    (before / "config.json").write_text("{")
    assert said(capsys) == ""


def test_nothing_is_said_of_a_run_that_goes_on(before, capsys):
    (before / "server.json").write_text(json.dumps({"pid": 1}))
    assert said(capsys) == ""
