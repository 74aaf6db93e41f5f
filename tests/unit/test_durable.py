"""Files that are replaced whole or not at all."""

import json
import os
import threading

import pytest

from common import durable
from common.durable import DurableFile, link, sync_file, sync_folder, write_json


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


def test_a_link_to_the_file_it_names_already_leaves_nothing_behind(tmp_path):
    (tmp_path / "source").write_text("bytes")
    for _ in range(2):
        link(tmp_path / "source", tmp_path / "target")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


@pytest.mark.parametrize("sync", [sync_file, sync_folder])
def test_syncing_what_is_missing_is_an_error(tmp_path, sync):
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "missing")


def spooled(path, data, size):
    """Write pieces of 10 bytes at their offsets."""
    file = DurableFile(path, size)
    for offset in range(0, len(data), 10):
        file.write_at(offset, memoryview(data)[offset : offset + 10])
    file.sync()
    file.close()
    file.close()


@pytest.mark.parametrize("old", [None, b"", b"short", b"x" * 200])
def test_a_durable_file_holds_what_was_written_whatever_it_is_written_over(tmp_path, old):
    path, data = tmp_path / "update", bytes(range(99))
    if old is not None:
        path.write_bytes(old)
    spooled(path, data, len(data))
    assert path.read_bytes() == data


def test_a_write_that_is_done_in_part_is_gone_on_with(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:3], at))
    spooled(tmp_path / "update", bytes(range(50)), 50)
    assert (tmp_path / "update").read_bytes() == bytes(range(50))


def test_a_large_durable_file_reaches_the_disk_while_it_grows(tmp_path, monkeypatch):
    synced = threading.Event()
    monkeypatch.setattr(durable, "_SYNC_EVERY_BYTES", 20)
    monkeypatch.setattr(os, "fdatasync", lambda _: synced.set())
    file = DurableFile(tmp_path / "update", 40)
    file.write_at(0, memoryview(bytes(10)))
    assert not synced.is_set()
    file.write_at(10, memoryview(bytes(10)))
    assert synced.wait(10)
    file.close()


def test_an_error_of_an_early_sync_is_the_last_ones(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(durable, "_SYNC_EVERY_BYTES", 1)
    monkeypatch.setattr(os, "fdatasync", fail)
    file = DurableFile(tmp_path / "update", 10)
    file.write_at(0, memoryview(bytes(10)))
    with pytest.raises(OSError, match="Input/output"):
        file.sync()
    file.close()


def test_a_link_leaves_no_other_name_even_if_it_is_there_already(tmp_path):
    source, target = tmp_path / "model", tmp_path / "best"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    for _ in range(2):
        durable.link(source, target)
        assert target.samefile(source)
        assert sorted(tmp_path.iterdir()) == [target, source]
