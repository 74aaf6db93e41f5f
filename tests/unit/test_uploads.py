"""The spool: whose file is whose, and which upload settles what."""

import asyncio
import functools
import json
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from common.durable import read_sealed, seal
from common.encodings.plain import Plain
from common.tasks import load_task
from common.tensors import digest_bytes, encode, schema_of
from common.transfer import Piece, pieces
from server import app, configuration
from server.engine.events import DeadlinePassed, Phase
from server.run import uploads
from server.run.results import Results
from server.run.uploads import Announcement, Outcome, Spool
from server.storage.checkpoints import RunDirectory
from tests.service.harness import TASK, options_of


def on_a_loop(test):
    """Run an asynchronous test while the coordinator of its stage runs."""

    @functools.wraps(test)
    def run(stage, **fixtures):
        async def whole():
            async with stage.begun():
                await test(stage=stage, **fixtures)

        asyncio.run(whole())

    return run


def data_of(value):
    return encode({"weight": torch.full((3, 4), value), "bias": torch.full((3,), value)})


class Stage:
    """A coordinator whose first round wants updates of a, b and c; nobody else calls it."""

    def __init__(self, folder):
        self.directory = RunDirectory(folder)
        self.directory.lock()
        self.folder, self.base = self.directory.updates_folder(1), self.directory.model_path(0)

    @asynccontextmanager
    async def begun(self):
        """Run the coordinator, from the begin of its first round."""
        task, options = load_task(TASK), {"min_clients": 3, "rounds": 1}
        options = configuration.resolve(options_of(self.directory.path, TASK, options), task)
        run_id = app.open_run(options, self.directory)
        self.coordinator = coordinator = app.prepare(options, task, self.directory, run_id, None)
        self.spool = coordinator.spool
        # The clients are there first, as they may be where it takes a while to begin.
        for partition, name in enumerate("abc"):
            session = coordinator.sessions.join(name, "one", partition)
        run = asyncio.create_task(coordinator.run())
        await session.wait(30)
        yield
        assert not run.done()
        run.cancel()
        coordinator.spool.close()

    def announce(self, data, offset=0):
        base = self.coordinator.offers.newest_model
        return Announcement(digest_bytes(data), offset, 0, base.digest, 5, {}, {})

    async def push(self, client, announcement, chunks):
        token = self.coordinator.assignments.of_client(client).task_token
        return await Results(self.coordinator).push(token, client, announcement, chunks)

    async def send(self, client, data, chunks=None, offset=0):
        """Send a stream of chunks: all of `data` if none are given."""

        async def stream():
            for piece in pieces(memoryview(data), offset) if chunks is None else chunks:
                yield piece

        return await self.push(client, self.announce(data, offset), stream())

    @property
    def files(self):
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path / "run")
    yield stage
    stage.directory.unlock()


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

        return await stage.push("a", stage.announce(older_data), stream())

    first = asyncio.create_task(older())
    await began.wait()
    await stage.send("a", newer_data, part(newer_data))
    go.set()
    told = await first
    assert (told.outcome, told.committed_size_bytes) == (Outcome.OFFSET_MISMATCH, 50)
    assert not told.complete
    assert stage.coordinator.status.ledger.refused == set()
    assert len(stage.files) == 1
    assert (await stage.send("a", newer_data, offset=50)).outcome is Outcome.ACCEPTED


@pytest.fixture
def spare(stage):
    """A file that is there before the round begins."""
    path = stage.directory.path / "rounds" / "spare" / "spare.safetensors"
    path.parent.mkdir()
    path.write_bytes(bytes(1000))
    return path


@on_a_loop
async def test_a_spare_is_written_over_under_its_own_name_and_by_one_upload(stage, spare):
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

    async def stream():
        yield part(data_of(1.0))[0]
        # Its client gives up, in another call.
        work = stage.coordinator.assignments.of_client("b")
        Results(stage.coordinator).report_failure(work, "FAILED", "")
        yield Piece(50, memoryview(data_of(1.0))[50:], last=True)

    told = await stage.push("b", stage.announce(data_of(1.0)), stream())
    assert told.outcome is Outcome.NOT_WANTED
    assert stage.files == []
    assert stage.coordinator.status.ledger.refused == {"a"}


@on_a_loop
async def test_recovery_keeps_what_a_record_names_and_deletes_the_rest(stage):
    for name, value in (("a", 1.0), ("b", 2.0)):
        await stage.send(name, data_of(value))
    damaged = stage.spool.path_of(stage.spool.accepted["b"])
    damaged.write_bytes(data_of(1.0))
    for litter in ("x.safetensors", "x.json.new", "y.safetensors"):
        (stage.folder / litter).write_bytes(b"x")
    (stage.folder / "folder").mkdir()
    record = stage.spool.path_of(stage.spool.accepted["a"]).with_suffix(".json")
    (stage.folder / "zz.json").write_bytes(record.read_bytes())
    spool = Spool(schema_of(stage.base), Plain())
    assert sorted(spool.recover(stage.folder, stage.base, 1, 1)) == ["a", "b"]
    kept = Path(spool.accepted["a"].file)
    assert stage.files == sorted([kept.name, kept.with_suffix(".json").name])
    (stage.folder / "yy.json").write_bytes(b"{")
    # Of what can't be read, nobody knows whose it was.
    assert Spool(schema_of(stage.base), Plain()).recover(stage.folder, stage.base, 1, 2) == [
        "a",
        None,
    ]
    assert stage.files == []


@on_a_loop
async def test_a_record_of_an_earlier_version_has_its_steps_beside_the_metrics(stage):
    await stage.send("a", data_of(1.0))
    path = stage.spool.path_of(stage.spool.accepted["a"]).with_suffix(".json")
    record = read_sealed(path)
    record["num_steps"] = record.pop("scalars")["num_steps"]
    path.write_text(json.dumps(seal(record)))
    spool = Spool(schema_of(stage.base), Plain())
    assert spool.recover(stage.folder, stage.base, 1, 1) == []
    assert spool.accepted == stage.spool.accepted


@on_a_loop
async def test_an_attempt_that_ends_while_its_folder_is_synced_is_no_fault_of_the_disk(
    stage, monkeypatch
):
    loop, sync = asyncio.get_running_loop(), uploads.sync_folder
    stage.coordinator.sessions.expel("c")  # Too few are left for a second attempt.

    def abandon_and_sync(folder):
        over = DeadlinePassed(1, 1, Phase.REPORTING)
        loop.call_soon_threadsafe(stage.coordinator.apply, over)
        end = time.monotonic() + 30
        while folder.exists():
            assert time.monotonic() < end
        sync(folder)

    monkeypatch.setattr(uploads, "sync_folder", abandon_and_sync)
    assert (await stage.send("a", data_of(1.0))).outcome is Outcome.ACCEPTED
    assert stage.coordinator.status.view.attempt == 2
