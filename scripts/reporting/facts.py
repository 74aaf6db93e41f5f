"""What a run directory says, made fit to print: damaged and absent values are left out, and noted.

Never writes, and waits for nothing: a run that goes on is read as it stands. Knows nothing about
pages or plots.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.tasks import Task, load_task_of_run
from scripts.division import Parts, parts_of_run
from scripts.summary import Numbers, Summary, numbers, plain, summary_of
from scripts.text import natural
from server.storage import layout
from server.storage.run_files import Line, Lines, RunFiles


@dataclass
class Client:
    """One client's part in the run."""

    name: str
    # Rounds by what became of them: accepted, refused, dropped, and evaluated only: not_selected.
    outcomes: Counter[str] = field(default_factory=Counter)
    # The last that it said of itself.
    examples: int | None = None
    accuracy: float | None = None
    loss: float | None = None
    # From a round's begin to its update's arrival, each time.
    seconds: list[float] = field(default_factory=list)
    bytes_up: int = 0


class ByClass(NamedTuple):
    """A round's evaluation on the server's test set: true classes by rows, and predicted."""

    round: int
    classes: Sequence[str]
    confusion: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Return the test examples of each class."""
        counts: NDArray[np.int64] = self.confusion.sum(1)
        return counts

    def accuracies(self) -> list[float | None]:
        """Return each class's; None where there is no example."""
        hits = self.confusion.diagonal()
        return [hit / n if n else None for hit, n in zip(hits, self.counts, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Facts(Summary):
    """All that a report tells, and what is missing."""

    run_id: str
    # running, ended or interrupted; and how far it came, in one line.
    state: str
    progress: str
    began: str | None
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    task: Task | None
    # The last committed round, whose row may be lost; 0 before the first.
    done: int
    clients: Sequence[Client]
    by_class: ByClass | None
    parts: Parts | None
    # Of the model: its tensors, and all their values.
    tensors: int | None
    values: int | None
    notes: Sequence[str]

    def option(self, name: str) -> str:
        """Return an option as text; empty if it is not there."""
        value = self.options.get(name)
        return "" if value is None else plain(f"{value:g}" if isinstance(value, float) else value)


def collect(path: Path, named: str | None = None) -> Facts:
    """Return what a run directory says.

    Args:
        path: the run directory.
        named: its task, if that is none of the built-in ones.

    Raises:
        InputError: it is none, or its files can't be read.
    """
    run = RunFiles(path)
    log = Lines(path / layout.LOG)
    sources = {
        layout.METRICS: run.metrics,
        layout.CLIENTS: run.clients,
        layout.EVALUATIONS: run.evaluations,
        layout.LOG: log,
    }
    try:
        lost, lines_lost = run.missing_rows, run.missing_lines
        # The rows first: what the others tell of a round that ends meanwhile is left out.
        found = {name: lines.all() for name, lines in sources.items()}
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    notes = [
        f"{lines.damaged} damaged line{'s' * (lines.damaged > 1)} of {name} left out"
        for name, lines in sources.items()
        if lines.damaged
    ]
    summary = summary_of(found[layout.METRICS])
    rows = summary.rows
    done = (int(rows[-1]["round"]) if rows else 0) + lost
    notes += _missing(rows, done)
    notes += [
        f"{name} lacks {count} rows of committed rounds" for name, count in lines_lost.items()
    ]
    clients = _clients(found[layout.CLIENTS], rows)
    if rows and not clients:
        notes.append(f"{layout.CLIENTS} has no rows: nothing is known about single clients")
    options = run.options
    task = _task(options, named, notes)
    parts = _parts(options, named, clients, notes) if task else None
    tensors, values = _size(path)
    state, progress = _progress(run, done, found[layout.LOG])
    versions = run.versions if isinstance(run.versions, dict) else {}
    return Facts(
        run_id=plain(run.run_id),
        state=state,
        progress=progress,
        began=_began(found[layout.LOG]),
        options=options,
        versions={plain(name): plain(version) for name, version in versions.items()},
        task=task,
        done=done,
        rows=rows,
        clients=clients,
        by_class=_by_class(found[layout.EVALUATIONS], task, summary.best.get("round")),
        parts=parts,
        tensors=tensors,
        values=values,
        notes=notes,
    )


def _missing(rows: Iterable[Numbers], done: int) -> list[str]:
    """Return what to note about rounds without a row, up to the last one done."""
    rounds = [0, *(int(row["round"]) for row in rows), done + 1]
    gaps = [(a + 1, b - 1) for a, b in pairwise(rounds) if b > a + 1]
    said = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in gaps)
    return [f"{layout.METRICS} has no row of round {said}"] if gaps else []


def _clients(lines: Iterable[Line], rows: Iterable[Numbers]) -> list[Client]:
    """Return the clients of the rows' rounds, those with the most updates first."""
    rounds = {row["round"] for row in rows}
    found: dict[str, Client] = {}
    for line in lines:
        values = numbers(line)
        if values.get("round") not in rounds:
            continue
        name = plain(line.get("client_id"))
        client = found.setdefault(name, Client(name))
        client.outcomes[str(line.get("outcome"))] += 1
        if "num_examples" in values:
            client.examples = int(values["num_examples"])
        client.accuracy = values.get("validation_accuracy", client.accuracy)
        client.loss = values.get("validation_loss", client.loss)
        client.seconds += [values["seconds"]] if "seconds" in values else []
        client.bytes_up += int(values.get("bytes_up", 0))
    return sorted(found.values(), key=lambda c: (-c.outcomes["accepted"], natural(c.name)))


def _task(options: Mapping[str, Any], named: str | None, notes: list[str]) -> Task | None:
    try:
        return load_task_of_run(str(options.get("task")), named)
    except InputError as error:
        notes.append(f"without the task, the names of what its model answers are left out: {error}")
        return None


def _parts(
    options: Mapping[str, Any], named: str | None, clients: Iterable[Client], notes: list[str]
) -> Parts | None:
    """Return the division of the data, unless what the clients said contradicts it."""
    try:
        parts = parts_of_run(options, named)
    except InputError:
        # The reason may name a folder of this machine, and a report is for others.
        notes.append("the clients' data is not at hand here: what each of them held is left out")
        return None
    trained = {client.examples for client in clients if client.examples is not None}
    if not trained <= {part.training for part in parts.parts}:
        notes.append("the clients trained on other numbers of examples than the data here gives")
        return None
    return parts


def _by_class(lines: Sequence[Line], task: Task | None, wanted: float | None) -> ByClass | None:
    """Return the evaluation of the wanted round; without it, the last one."""
    last = lines[-1] if lines else {}
    line = next((line for line in lines if line.get("round") == wanted), last)
    try:
        number, confusion = int(line["round"]), np.array(line["confusion"], np.int64)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if confusion.ndim != 2 or len(set(confusion.shape)) > 1 or (confusion < 0).any():
        return None
    names = [plain(name) for name in task.class_names] if task else []
    if len(names) != len(confusion):
        names = [str(number) for number in range(len(confusion))]
    return ByClass(number, names, confusion)


def _size(run: Path) -> tuple[int | None, int | None]:
    from safetensors import SafetensorError, safe_open

    for name in (layout.BEST, layout.LAST):
        try:
            with safe_open(layout.model(run, name), framework="np") as file:
                shapes = [file.get_slice(tensor).get_shape() for tensor in file.keys()]  # noqa: SIM118
        except (OSError, SafetensorError):
            continue
        return len(shapes), sum(map(math.prod, shapes))
    return None, None


def _progress(run: RunFiles, done: int, log: Sequence[Line]) -> tuple[str, str]:
    """Return the state, and a line that says how far the run came: to the last round done."""
    wanted = run.options.get("rounds")
    of = f" of {wanted}" if isinstance(wanted, int) else ""
    came = f"after round {done}{of}" if done else "before its first round"
    marks = ("server started", "run ended", "interrupted")
    mark = next((line for line in reversed(log) if line.get("event") in marks), {})
    if run.running:
        return "running", f"{came}, still running"
    if mark.get("event") == "run ended":
        return "ended", f"ended {came}: {plain(mark.get('reason'))}"
    if isinstance(wanted, int) and done >= wanted:
        return "ended", f"ended {came}"
    return "interrupted", f"interrupted {came}"


def _began(log: Sequence[Line]) -> str | None:
    stamp = str(log[0].get("timestamp", "")) if log else ""
    return f"{stamp[:10]} {stamp[11:16]} UTC" if stamp.endswith("Z") else None
