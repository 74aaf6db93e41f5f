"""What the pages show, out of the lines of a run: columns, headlines, and clients by rounds.

Lines may come from older versions, or be damaged: what isn't there, or is no finite number, is
NaN, never 0. Knows nothing about files or figures.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scripts.summary import Numbers, own_names
from scripts.text import natural
from server.storage.run_files import Line

Column = NDArray[np.float64]

# Of the clients' own metrics: they may name what they like.
_MOST_OWN = 32

# What a client's round ended with, as clients.jsonl says it.
OUTCOMES = ("accepted", "refused", "dropped", "not_selected")


def number(value: object) -> float:
    """Return a finite number as it is, all else as NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        found = float(value)
    except OverflowError:
        return math.nan
    return found if math.isfinite(found) else math.nan


def column(lines: Iterable[Mapping[str, Any]], name: str) -> Column:
    """Return a value of each line."""
    return np.array([number(line.get(name)) for line in lines], np.float64)


def own_metrics(rows: Iterable[Numbers]) -> dict[str, Column]:
    """Return the columns that a task's own evaluation adds, by what they are called."""
    return {name.replace("_", " "): column(rows, name) for name in own_names(rows)}


def last(values: Column) -> float:
    """Return the last value that is known; NaN if none is."""
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else math.nan


class ByClient(NamedTuple):
    """A value of each client (rows) in each round (columns)."""

    clients: list[str]
    rounds: list[int]
    values: NDArray[np.float32]


def by_client(lines: Iterable[Line], name: str) -> ByClient:
    """Return a value of clients.jsonl; of the column "outcome", its place in OUTCOMES.

    A name of `own_of_clients` is one of the task's own metrics.
    """
    codes = {outcome: place for place, outcome in enumerate(OUTCOMES)}
    cells: dict[tuple[str, int], object] = {}
    for line in lines:
        client, at = line.get("client_id"), line.get("round")
        if isinstance(client, str) and type(at) is int:
            value = line[name] if name in line else _own(line).get(name)
            cells[client, at] = codes.get(str(value)) if name == "outcome" else value
    clients = sorted({client for client, _ in cells}, key=natural)
    rounds = sorted({at for _, at in cells})
    row_of = {client: place for place, client in enumerate(clients)}
    column_of = {at: place for place, at in enumerate(rounds)}
    values = np.full((len(clients), len(rounds)), np.nan, np.float32)
    for (client, at), value in cells.items():
        values[row_of[client], column_of[at]] = number(value)
    return ByClient(clients, rounds, values)


# The task's own metrics of a client's line, and what their names begin with.
_OWN = {"train_metrics": "training", "validation_metrics": "validation"}


def _own(line: Line) -> dict[str, object]:
    found: dict[str, object] = {}
    for column, side in _OWN.items():
        values = line.get(column)
        if isinstance(values, dict):
            found |= {f"{side} {name}".replace("_", " "): value for name, value in values.items()}
    return found


def own_of_clients(lines: Iterable[Line]) -> list[str]:
    """Return the names of the task's own metrics that clients reported, for `by_client`."""
    held = Counter(name for line in lines for name in _own(line))
    return sorted(name for name, _ in held.most_common(_MOST_OWN))


def examples_by_client(lines: Iterable[Line]) -> dict[str, float]:
    """Return the examples that each client last trained on."""
    table = by_client(lines, "num_examples")
    found = {c: last(row.astype(float)) for c, row in zip(table.clients, table.values, strict=True)}
    return {client: count for client, count in found.items() if not math.isnan(count)}


def confusion_of(line: Line) -> NDArray[np.int64] | None:
    """Return a round's confusion matrix, rows by true class; None if the line holds none."""
    try:
        matrix = np.array(line.get("confusion"))
    except ValueError:  # Its rows differ in length.
        return None
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0
    return matrix if square and matrix.dtype.kind == "i" and matrix.min() >= 0 else None


def differing(options: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Return the options that runs don't have in common: each run's value as text, by option."""
    names = dict.fromkeys(name for own in options.values() for name in own)
    found = {name: [shown(own.get(name)) for own in options.values()] for name in names}
    places = {"run_dir", "config", "resume", "bind", "admin_bind"}
    return {
        name: values
        for name, values in found.items()
        if len(set(values)) > 1 and name not in places
    }


def shown(value: object) -> str:
    """Return an option's value as text."""
    return "–" if value is None else str(value)
