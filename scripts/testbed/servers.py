"""A real server under measurement, in a folder of its own under runs/: started, and followed.

The folder lies where runs lie, so that its files are on the disk that a run would use.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import RunFailed
from scripts.testbed.processes import Process
from server.storage import layout

TASK = "scripts.testbed.tasks:Perturbation"
_SAMPLE_SECONDS = 0.005
_READY_SECONDS = 120.0


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
        rest = ""
        with (self.run / layout.LOG).open() as log:
            while not self.process.ended:
                for process in others:
                    if process.ended:
                        process.wait()
                anonymous = max(anonymous, self.process.memory("RssAnon"))
                high_water = max(high_water, self.process.memory("VmHWM"))
                *lines, rest = (rest + log.read()).split("\n")
                for event in map(json.loads, lines):
                    if event["event"] == "round committed":
                        when = datetime.fromisoformat(event["timestamp"]).timestamp()
                        commits.append(Commit(when, sum(p.cpu_seconds() for p in processes)))
                time.sleep(_SAMPLE_SECONDS)
        for process in processes:
            process.wait()
        return Watched(commits, anonymous, high_water)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log's whole lines with this event; the last may still be written."""
        *lines, _ = (self.run / layout.LOG).read_text().split("\n")
        return [event for event in map(json.loads, lines) if event["event"] == name]

    @property
    def model_size(self) -> int:
        """Return the model's safetensors bytes."""
        return layout.model(self.run).stat().st_size

    def median(self, column: str) -> float:
        """Return the median of a column of the metrics, the first round aside."""
        lines = (self.run / layout.METRICS).read_text().splitlines()
        return statistics.median(float(json.loads(line)[column]) for line in lines[1:])


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
            ready = run / layout.READY
            until = time.monotonic() + _READY_SECONDS
            while not ready.exists():
                if process.ended or time.monotonic() > until:
                    raise RunFailed(f"no server: {log.read_text()}")
                time.sleep(0.005)
            yield Server(process, run, json.loads(ready.read_text())["address"])


def client_of(address: str, partitions: object, *flags: object) -> Process:
    """Start a client, e.g. of partition 3 or of 0-9."""
    return Process("client", "--server", address, "--partition", partitions, "--task", TASK, *flags)
