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
from common.printable import printable
from common.tasks import Task, load_task_of_run
from scripts.division import Parts, parts_of_run
from scripts.text import natural
from server.storage import layout
from server.storage.columns import COLUMNS
from server.storage.run_files import Line, Lines, RunFiles

Numbers = Mapping[str, float]

# Of the task's own metrics; clients may name theirs as they like.
_MOST_OWN = 32
# Beyond these, names are cut.
_LONGEST_NAME = 200


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
    """A round's evaluation on the server's held-out data: true classes by rows, and predicted."""

    round: int
    classes: Sequence[str]
    confusion: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Return the held-out examples of each class."""
        counts: NDArray[np.int64] = self.confusion.sum(1)
        return counts

    def accuracies(self) -> list[float | None]:
        """Return each class's; None where there is no example."""
        hits = self.confusion.diagonal()
        return [hit / n if n else None for hit, n in zip(hits, self.counts, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Facts:
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
    # A row of what is a number, for each committed round, ascending.
    rows: Sequence[Numbers]
    # That of the best round, or of the last where none was called the best; empty without rows.
    best: Numbers
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

    @property
    def last(self) -> Numbers:
        """Return the last round's row; empty before the first."""
        return self.rows[-1] if self.rows else {}

    @property
    def best_is_known(self) -> bool:
        """Say whether `best` was called the best, as it is by accuracy, or else by loss."""
        return bool(self.rows) and self.best.get("best_round") == self.best["round"]

    def total(self, name: str) -> float | None:
        """Return a column's sum; None where no row has it."""
        found = [row[name] for row in self.rows if name in row]
        return sum(found) if found else None


def accuracy_of(row: Numbers) -> float | None:
    """Return the server's accuracy, else the clients': what the best round is the best by."""
    return row.get("global_accuracy", row.get("client_accuracy"))


def loss_of(row: Numbers) -> float | None:
    """Return the server's loss, else the clients': what it is the best by without an accuracy."""
    return row.get("global_loss", row.get("client_loss"))


def own_names(rows: Sequence[Numbers]) -> list[str]:
    """Return the columns of the task's own metrics: global_<name> and client_<name>."""
    found = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    return sorted(name for name in found if name.startswith(("global_", "client_")))[:_MOST_OWN]


def plain(value: object) -> str:
    """Return text that any page and any font can show, on one line."""
    text = printable(str(value))
    return text if len(text) <= _LONGEST_NAME else text[:_LONGEST_NAME] + "…"


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
    rows = _rows(found[layout.METRICS])
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
    best = _best(rows)
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
        best=best,
        by_class=_by_class(found[layout.EVALUATIONS], task, best.get("round")),
        parts=parts,
        tensors=tensors,
        values=values,
        notes=notes,
    )


def _numbers(line: Line) -> dict[str, float]:
    """Return what is a finite number; of a task's own metrics, as global_<name>."""
    found = dict(line)
    for side in ("global", "client"):
        own = line.get(f"{side}_metrics")
        if isinstance(own, dict):
            found |= {f"{side}_{plain(name)}": value for name, value in own.items()}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _rows(lines: Iterable[Line]) -> list[dict[str, float]]:
    numbers = (_numbers(line) for line in lines)
    by_round = {row["round"]: row for row in numbers if isinstance(row.get("round"), int)}
    return [by_round[number] for number in sorted(by_round)]


def _best(rows: Sequence[Numbers]) -> Numbers:
    last = rows[-1] if rows else {}
    return next((row for row in rows if row["round"] == last.get("best_round")), last)


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
        numbers = _numbers(line)
        if numbers.get("round") not in rounds:
            continue
        name = plain(line.get("client_id"))
        client = found.setdefault(name, Client(name))
        client.outcomes[str(line.get("outcome"))] += 1
        if "num_examples" in numbers:
            client.examples = int(numbers["num_examples"])
        client.accuracy = numbers.get("validation_accuracy", client.accuracy)
        client.loss = numbers.get("validation_loss", client.loss)
        client.seconds += [numbers["seconds"]] if "seconds" in numbers else []
        client.bytes_up += int(numbers.get("bytes_up", 0))
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
