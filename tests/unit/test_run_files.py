"""A run directory is read while it grows, after it was cut, and when it is damaged."""

import json
import os

import pytest

from common.errors import InputError
from server.storage.checkpoints import newest_run
from server.storage.run_files import Lines, RunFiles, find_runs


def write_config(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    config = {"run_id": "r", "options": {"task": "digits"}, "versions": {}, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_only_complete_lines_are_there(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = Lines(path)
    assert lines.all() == []
    path.write_text('{"round": 1}\n{"rou')
    assert lines.all() == [{"round": 1}]
    with path.open("a") as file:
        file.write('nd": 2}\n')
    assert lines.all() == [{"round": 1}, {"round": 2}]


def test_new_lines_are_given_once_also_after_the_file_was_written_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = Lines(path)
    assert lines.new() == []
    path.write_text('{"round": 1}\n{"round": 2}\n{"rou')
    assert lines.new() == [{"round": 1}, {"round": 2}]
    assert lines.new() == []
    (tmp_path / "new").write_text('{"round": 1}\n')
    (tmp_path / "new").replace(path)
    assert lines.new() == []
    path.write_text('{"round": 1}\n{"round": 2}\n{"round": 3}\n')
    assert lines.new() == [{"round": 3}]


def test_lines_that_are_not_wanted_are_not_kept(tmp_path):
    path = tmp_path / "server.jsonl"
    path.write_text('{"event": "a"}\n{"event": "b"}\n{"event": "a"}\n')
    lines = Lines(path, lambda line: line["event"] == "b")
    assert lines.all() == [{"event": "b"}]
    assert lines.damaged == 0


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 1}\n{"round": 2}\n')
    lines = Lines(path)
    assert len(lines.all()) == 2
    (tmp_path / "new").write_text('{"round": 1}\n{"round": 3}\n{"round": 4}\n')
    (tmp_path / "new").replace(path)
    assert [line["round"] for line in lines.all()] == [1, 3, 4]
    path.unlink()
    assert lines.all() == []


def test_damaged_lines_are_left_out_and_counted(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"round": 1}\n\xff\x00\n[]\n{"round": 2}\n')
    lines = Lines(path)
    assert [line["round"] for line in lines.all()] == [1, 2]
    assert lines.damaged == 2


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"options": 3}', "\udcff"])
def test_a_folder_without_a_whole_configuration_is_no_run(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"is no run directory: its config\.json is"):
        RunFiles(tmp_path)


def test_a_run_is_running_while_its_servers_process_lives(tmp_path):
    run = RunFiles(write_config(tmp_path))
    assert not run.running
    (tmp_path / "server.json").write_text(json.dumps({"pid": os.getpid()}))
    assert run.running
    # No process has this number: it is above the largest that a system gives.
    (tmp_path / "server.json").write_text(json.dumps({"pid": 2**30}))
    assert not run.running


def test_the_last_committed_rounds_without_a_row_are_counted_once_nothing_runs(tmp_path):
    run = RunFiles(write_config(tmp_path))
    assert run.missing_rows == 0
    for number in (0, 3, 5):
        (tmp_path / "rounds" / f"{number:05d}").mkdir(parents=True)
        (tmp_path / "rounds" / f"{number:05d}" / "record.json").touch()
    # In progress, or no round at all.
    (tmp_path / "rounds" / "00006").mkdir()
    (tmp_path / "rounds" / "spare").mkdir()
    (tmp_path / "rounds" / "spare" / "record.json").touch()
    assert run.missing_rows == 5
    (tmp_path / "metrics.jsonl").write_text('{"round": 3}\n{"round": "9"}\n')
    assert run.missing_rows == 2
    # The row of a round follows its commit.
    (tmp_path / "server.json").write_text(json.dumps({"pid": os.getpid()}))
    assert run.missing_rows == 0
    (tmp_path / "server.json").unlink()
    (tmp_path / "metrics.jsonl").write_text('{"round": 7}\n')
    assert run.missing_rows == 0


def test_the_lines_that_other_files_lack_are_counted_once_nothing_runs(tmp_path):
    run = RunFiles(write_config(tmp_path))
    assert run.missing_lines == {}
    record = tmp_path / "rounds" / "00002" / "record.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    assert run.missing_lines == {}
    lines = {"clients.jsonl": 3, "evaluations.jsonl": 1}
    record.write_text(json.dumps({"lines": lines}))
    assert run.missing_lines == lines
    (tmp_path / "evaluations.jsonl").write_text('{"round": 2}\n')
    (tmp_path / "clients.jsonl").write_text('{"round": 2}\n')
    assert run.missing_lines == {"clients.jsonl": 2}
    (tmp_path / "server.json").write_text(json.dumps({"pid": os.getpid()}))
    assert run.missing_lines == {}


def test_runs_are_found_with_the_newest_first(tmp_path):
    for number, name in enumerate(["b", "a", "c"]):
        folder = write_config(tmp_path / name)
        os.utime(folder / "config.json", (number, number))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    # A file that comes later makes its run no newer: --resume takes the same one.
    (tmp_path / "b" / "report").mkdir()
    assert [path.name for path in find_runs(tmp_path)] == ["c", "a", "b"]
    assert newest_run(tmp_path) == tmp_path / "c"
    assert find_runs(tmp_path / "missing") == []
