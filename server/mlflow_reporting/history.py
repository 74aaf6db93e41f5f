"""What a run directory has to tell MLflow: rounds with their times, parameters, how it ended.

Knows nothing about MLflow.
"""

import re
from collections.abc import Container, Iterator
from datetime import datetime
from typing import Any, Literal, NamedTuple

from server.options import CHANGEABLE
from server.storage import layout
from server.storage.run_files import Line, Lines, RunFiles, numbers, read_json

# As MLflow calls them.
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

_STARTED, _COMMITTED, _ENDED = "server started", "round committed", "run ended"
_LONGEST_NAME = 250


class Round(NamedTuple):
    """A committed round; times are seconds since 1970."""

    number: int
    began: float
    ended: float
    metrics: dict[str, float]


class History:
    """A run, as its directory tells it; of a run that goes on, it tells more each time.

    Args:
        files: the run directory's.
    """

    def __init__(self, files: RunFiles) -> None:
        self.files = files
        told = (_STARTED, _COMMITTED, _ENDED)
        self._log = Lines(files.path / layout.LOG, lambda line: line.get("event") in told)
        # Another server than this one, which resumes the run, has another process to report it.
        self.pid = self._server()

    def _server(self) -> int | None:
        pid = read_json(self.files.path / layout.READY).get("pid")
        return pid if isinstance(pid, int) else None

    def _events(self, *names: str) -> list[Line]:
        return [line for line in self._log.all() if line["event"] in names]

    @property
    def status(self) -> Status:
        """Whether the run goes on, or how it ended; killed: it can go on with --resume."""
        last = (self._events(_STARTED, _ENDED) or [{}])[-1]
        if last.get("event") == _ENDED:
            return "FAILED" if last.get("reason") == "failed" else "FINISHED"
        goes_on = self.pid is not None and self.pid == self._server() and self.files.running
        return "RUNNING" if goes_on else "KILLED"

    @property
    def began(self) -> float:
        """When the run was begun."""
        started = self._events(_STARTED)
        if started:
            return _seconds(started[0])
        return (self.files.path / layout.CONFIG).stat().st_mtime

    @property
    def ended(self) -> float:
        """When something happened last."""
        events = self._events(_STARTED, _COMMITTED, _ENDED)
        return _seconds(events[-1]) if events else self.began

    def rounds(self, known: Container[int] = ()) -> Iterator[Round]:
        """Yield the committed rounds, but for those that are known, in their order."""
        goes_on = self.status == "RUNNING"
        rows = self.files.metrics.all()
        ends = {line.get("round"): _seconds(line) for line in self._events(_COMMITTED)}
        end = self.began
        for row in rows:
            end = ends.get(row["round"], end + row["duration_seconds"])
            if row["round"] in known:
                continue
            if goes_on and row is rows[-1] and row["round"] not in ends:
                # The log tells in a moment when it was; the same round must have the same time,
                # whoever tells it, or MLflow would take it for another.
                return
            yield Round(row["round"], end - row["duration_seconds"], end, _metrics(row))

    def parameters(self) -> dict[str, str]:
        """Return the options that a run can't change, as MLflow's parameters can't."""
        options = self.files.options.items()
        return {
            name: str(value)
            for name, value in options
            if name not in CHANGEABLE and value not in (None, "", "{}")
        }

    def tags(self) -> dict[str, str]:
        """Return what helps to find a run among others."""
        options = self.files.options
        return {
            "folkmoot.run_id": self.files.run_id,
            "folkmoot.rounds": str(options.get("rounds")),
            "folkmoot.task": str(options.get("task")),
            "folkmoot.strategy": str(options.get("strategy")),
            "folkmoot.data_split": _split(options),
        } | {f"folkmoot.version.{name}": version for name, version in self.files.versions.items()}


def _metrics(row: Line) -> dict[str, float]:
    """Return a row's numbers, under names that MLflow takes; the round is their step."""
    found = {name: value for name, value in numbers(row).items() if name != "round"}
    return {
        re.sub(r"[^\w.\- ]", "_", name, flags=re.ASCII)[:_LONGEST_NAME]: value
        for name, value in found.items()
    }


def _split(options: dict[str, Any]) -> str:
    """Return a run's data split in a few words.

    >>> _split({"partitioner": "dirichlet", "alpha": 0.5, "num_partitions": 5})
    'dirichlet, alpha 0.5, 5 partitions'
    """
    scheme = str(options.get("partitioner"))
    detail = {"dirichlet": "alpha", "quantity": "alpha", "shards": "shards_per_client"}.get(scheme)
    words = [scheme]
    if detail:
        words.append(f"{detail.replace('_', ' ')} {options.get(detail)}")
    words.append(f"{options.get('num_partitions')} partitions")
    return ", ".join(words)


def _seconds(line: Line) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()
