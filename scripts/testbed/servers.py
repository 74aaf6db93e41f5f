"""A real server under measurement, in a folder of its own under runs/: started, and followed.

The folder lies where runs lie, so that its files are on the disk that a run would use.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from common.errors import RunFailed
from scripts.testbed.processes import Process
from server.storage import layout
from server.storage.run_files import Line, Lines

TASK = "scripts.testbed.tasks:Perturbation"
_SAMPLE_SECONDS = 0.005


class Commit(NamedTuple):
    """A round's end by the server's log, and the CPU seconds of all processes by then."""

    time: float
    cpu_seconds: float


class Watched(NamedTuple):
    """What was seen of a run: its commits, and the server's peak memory in bytes."""

    commits: list[Commit]
    anonymous: int
    high_water: int

    @property
    def round_seconds(self) -> float:
        """Return the median time from one commit to the next."""
        return statistics.median(b.time - a.time for a, b in pairwise(self.commits))

    @property
    def round_cpu_seconds(self) -> float:
        """Return the mean CPU seconds from one commit to the next."""
        first, last = self.commits[0], self.commits[-1]
        return (last.cpu_seconds - first.cpu_seconds) / (len(self.commits) - 1)


class Server:
    """A server process and its run directory."""

    def __init__(self, process: Process, run: Path, address: str) -> None:
        self.process = process
        self.run = run
        self.address = address

    def watch(self, others: Sequence[Process]) -> Watched:
        """Follow the server to its end.

        Args:
            others: processes whose CPU seconds count, too.

        Raises:
            RunFailed: a process did not end well.
        """
        processes = [self.process, *others]
        commits: list[Commit] = []
        anonymous = high_water = 0
        log = self._events("round committed")
        while not self.process.ended:
            for process in others:
                if process.ended:
                    process.wait()
            anonymous = max(anonymous, self.process.memory("RssAnon"))
            high_water = max(high_water, self.process.memory("VmHWM"))
            for event in log.new():
                when = datetime.fromisoformat(event["timestamp"]).timestamp()
                commits.append(Commit(when, sum(p.cpu_seconds() for p in processes)))
            time.sleep(_SAMPLE_SECONDS)
        for process in processes:
            process.wait()
        return Watched(commits, anonymous, high_water)

    def events(self, name: str) -> list[Line]:
        """Return the log's lines with this event."""
        return self._events(name).all()

    def _events(self, name: str) -> Lines:
        return Lines(self.run / layout.LOG, lambda line: line.get("event") == name)

    @property
    def model_size(self) -> int:
        """Return the model's safetensors bytes."""
        return layout.model(self.run).stat().st_size

    def median(self, column: str) -> float:
        """Return the median of a column of the metrics, the first round aside."""
        rows = Lines(self.run / layout.METRICS).all()
        return statistics.median(float(row[column]) for row in rows[1:])


@contextmanager
def folder() -> Iterator[Path]:
    """Make a folder under runs/ for a while."""
    Path("runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir="runs") as name:
        yield Path(name)


@contextmanager
def serving(*flags: object, task: str = TASK) -> Iterator[Server]:
    """Run a server that evaluates nothing; it listens by then.

    Raises:
        RunFailed: it ended at once.
    """
    with folder() as place:
        run = place / "run"
        log = place / "server.log"
        with Process(
            *("server", "--task", task, "--run-dir", run, "--bind", "127.0.0.1:0"),
            *("--evaluate-every", 0, "--client-evaluate-every", 0, "--partitioner", "iid"),
            *flags,
            output=log,
        ) as process:
            ready = process.wait_until_listening(run)
            if ready is None:
                raise RunFailed(f"no server: {log.read_text()}")
            yield Server(process, run, ready["address"])


def client_of(address: str, partitions: object, *flags: object) -> Process:
    """Start a client, e.g. of partition 3 or of 0-9."""
    return Process("client", "--server", address, "--partition", partitions, "--task", TASK, *flags)
