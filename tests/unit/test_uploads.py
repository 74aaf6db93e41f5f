"""The spool: whose file is whose, and which upload settles what."""

import asyncio
import functools
from pathlib import Path

import pytest
import torch

from common.tensors import digest_bytes, encode, schema_of
from common.transfer import Piece, pieces
from server.run.assignments import Assignment, Work
from server.run.uploads import Announcement, Outcome, Spool

BASE = digest_bytes(b"base")


def on_a_loop(test):
    """Run an asynchronous test on an event loop of its own."""

    @functools.wraps(test)
    def run(**fixtures):
        asyncio.run(test(**fixtures))

    return run


def data_of(value):
    return encode({"w": torch.full((40,), value)})


class Judge:
    """Wants every update of its open assignments; writes down what it hears."""

    def __init__(self, spool):
        self.spool, self.refused = spool, []
        self.open = {
            name: Assignment(f"token-{name}", name, 1, 1, Work.TRAIN, 0) for name in ("a", "b")
        }

    def find(self, task_token, client_id):
        return self.open.get(client_id)

    def objection(self, assignment, announcement):
        return None

    def offer(self, assignment):
        self.spool.keep(assignment.client_id)
        del self.open[assignment.client_id]
        return True

    def refuse(self, assignment, message):
        self.refused.append(assignment.client_id)
        del self.open[assignment.client_id]

    def count_resent(self, size):
        pass

    def fail(self, error):
        raise error


class Stage:
    """A spool with its folder, its base model and its judge."""

    def __init__(self, folder):
        self.folder, self.base = folder / "updates", folder / "base"
        self.folder.mkdir()
        self.base.write_bytes(data_of(0.0))
        self.spool = Spool(schema_of(self.base))
        self.judge = Judge(self.spool)

    def begin(self, spares=()):
        self.spool.begin(self.folder, self.base, list(spares))

    async def send(self, client, data, chunks=None, offset=0, announced=None):
        """Send a stream of chunks: all of `data` if none are given."""
        announcement = Announcement(announced or digest_bytes(data), offset, 0, BASE, 5, 1, {})

        async def stream():
            for piece in pieces(memoryview(data), offset) if chunks is None else chunks:
                yield piece

        args = (f"token-{client}", client, announcement, stream(), self.judge)
        return await self.spool.receive(*args)

    @property
    def files(self):
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    stage.begin()
    return stage


def part(data, size=50):
    return [Piece(0, memoryview(data)[:size], last=False)]


@on_a_loop
async def test_each_stream_of_other_bytes_has_a_file_of_its_own_and_the_older_ones_goes(stage):
    names = []
    for value in (1.0, 2.0, 3.0):
        await stage.send("a", data_of(value), part(data_of(value)))
        names += stage.files
    assert len(set(names)) == len(names) == 3
    assert not any("token" in name for name in names)
    # The same bytes go on in the same file.
    result = await stage.send("a", data_of(3.0), offset=50)
    assert result.outcome is Outcome.ACCEPTED
    update = stage.spool.accepted["a"]
    assert update.file == names[2]
    assert stage.spool.path_of(update).read_bytes() == data_of(3.0)


@on_a_loop
async def test_a_stream_that_was_superseded_touches_nothing_of_the_newer_one(stage):
    older_data, newer_data = data_of(1.0), data_of(2.0)
    began, go = asyncio.Event(), asyncio.Event()

    async def older():
        async def stream():
            yield part(older_data)[0]
            began.set()
            await go.wait()
            yield Piece(50, memoryview(older_data)[50:], last=True)

        announcement = Announcement(digest_bytes(older_data), 0, 0, BASE, 5, 1, {})
        return await stage.spool.receive("token-a", "a", announcement, stream(), stage.judge)

    first = asyncio.create_task(older())
    await began.wait()
    await stage.send("a", newer_data, part(newer_data))
    go.set()
    told = await first
    assert (told.outcome, told.committed_size_bytes) == (Outcome.OFFSET_MISMATCH, 50)
    assert not told.complete
    assert stage.judge.refused == []
    assert len(stage.files) == 1
    assert (await stage.send("a", newer_data, offset=50)).outcome is Outcome.ACCEPTED


@on_a_loop
async def test_a_spare_is_written_over_under_its_own_name_and_by_one_upload(stage, tmp_path):
    spare = tmp_path / "spare.safetensors"
    spare.write_bytes(bytes(1000))
    stage.begin([spare])
    for name, value in (("a", 1.0), ("b", 2.0)):
        assert (await stage.send(name, data_of(value))).outcome is Outcome.ACCEPTED
    updates = stage.spool.accepted
    assert updates["a"].file == "spare.safetensors" != updates["b"].file
    assert [stage.spool.path_of(updates[c]).read_bytes() for c in "ab"] == [
        data_of(1.0),
        data_of(2.0),
    ]
    assert not spare.exists()


@on_a_loop
async def test_what_is_refused_or_not_wanted_leaves_no_file(stage):
    assert (await stage.send("a", b"no tensors")).outcome is Outcome.INVALID
    stage.judge.offer = lambda _: False
    assert (await stage.send("b", data_of(1.0))).outcome is Outcome.NOT_WANTED
    assert stage.files == []
    assert stage.judge.refused == ["a"]


@on_a_loop
async def test_recovery_keeps_what_a_record_names_and_deletes_the_rest(stage, tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0)):
        await stage.send(name, data_of(value))
    damaged = stage.spool.path_of(stage.spool.accepted["b"])
    damaged.write_bytes(data_of(1.0))
    for litter in ("x.safetensors", "x.json.new", "token-a.safetensors"):
        (stage.folder / litter).write_bytes(b"x")
    (stage.folder / "folder").mkdir()
    record = stage.spool.path_of(stage.spool.accepted["a"]).with_suffix(".json")
    (stage.folder / "zz.json").write_bytes(record.read_bytes())
    spool = Spool(schema_of(stage.base))
    assert sorted(spool.recover(stage.folder, stage.base, 1, 1)) == ["a", "b"]
    kept = Path(spool.accepted["a"].file)
    assert stage.files == sorted([kept.name, kept.with_suffix(".json").name])
    (stage.folder / "yy.json").write_bytes(b"{")
    # Of what can't be read, nobody knows whose it was.
    assert Spool(schema_of(stage.base)).recover(stage.folder, stage.base, 1, 2) == ["a", None]
    assert stage.files == []


@on_a_loop
async def test_an_attempt_that_ends_while_its_folder_is_synced_is_no_fault_of_the_disk(stage):
    keep = stage.judge.offer

    def keep_and_abandon(assignment):
        keep(assignment)
        stage.spool.close()
        stage.folder.rename(stage.folder.with_name("abandoned"))
        return True

    stage.judge.offer = keep_and_abandon
    assert (await stage.send("a", data_of(1.0))).outcome is Outcome.ACCEPTED
