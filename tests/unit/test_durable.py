"""Files that are replaced whole or not at all."""

import json
import os

import pytest

from server.durable import link, sync_file, sync_folder, write_json


def test_a_json_file_is_replaced_by_the_new_value(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    write_json(path, {"b": [None, 0.1]})
    assert json.loads(path.read_text()) == {"b": [None, 0.1]}
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == 1


def test_a_file_takes_its_place_only_once_it_is_durable(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    write_json(path, 1)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, 2)
    assert json.loads(path.read_text()) == 1


def test_a_link_takes_the_place_of_what_was_there(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
    target = tmp_path / "target"
    link(tmp_path / "first", target)
    link(tmp_path / "second", target)
    assert target.read_text() == "second"
    assert (tmp_path / "first").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_link_survives_its_source(tmp_path):
    (tmp_path / "source").write_text("bytes")
    link(tmp_path / "source", tmp_path / "target")
    (tmp_path / "source").unlink()
    assert (tmp_path / "target").read_text() == "bytes"


def test_a_link_succeeds_after_a_crash_halfway_through_the_last_one(tmp_path):
    (tmp_path / "source").write_text("new")
    (tmp_path / "target.tmp").write_text("old")
    link(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "new"


@pytest.mark.parametrize("sync", [sync_file, sync_folder])
def test_syncing_what_is_missing_is_an_error(tmp_path, sync):
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "missing")
