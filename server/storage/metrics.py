"""A committed round's rows, and their files: metrics.jsonl, .csv, clients.jsonl, evaluations.jsonl.

The files follow the commits: after a crash they are brought back in line with them.
Absent is null, never 0. Knows nothing about models.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import IO, Any

from common.durable import append_lines
from common.logs import get_logger
from common.training import Metrics
from server.storage import layout
from server.storage.columns import SPREAD, Row
from server.storage.run_files import own_numbers

log = get_logger()


# Of a task's own metrics in a table: clients may name what they like.
_MOST_OWN = 64
_CSV_COLUMNS = [f.name for f in fields(Row) if not f.name.endswith("_metrics")]


def weighted_means(reports: Iterable[tuple[int, Mapping[str, float]]]) -> Metrics:
    """Return each metric's finite mean over the reports that hold it, weighted by num_examples.

    >>> weighted_means([(1, {"loss": 4.0}), (3, {"loss": 0.0}), (0, {"loss": 9.0})])
    {'loss': 1.0}
    """
    sums: dict[str, float] = {}
    weights: dict[str, int] = {}
    for count, metrics in reports:
        for name, value in metrics.items():
            if count > 0:
                sums[name] = sums.get(name, 0.0) + count * value
                weights[name] = weights.get(name, 0) + count
    # Of finite values, too, a sum may be none.
    return finite_only({name: sums[name] / weights[name] for name in sorted(sums)})


def most_reported(reports: Sequence[Mapping[str, float]], count: int) -> frozenset[str]:
    """Return the names of the metrics that most reports hold; of equals, the first by name.

    >>> sorted(most_reported([{"f1": 1.0, "x": 1.0}, {"f1": 0.5}, {"a": 0.1}], 2))
    ['a', 'f1']
    """
    held = Counter(name for metrics in reports for name in metrics)
    return frozenset(sorted(held, key=lambda name: (-held[name], name))[:count])


def spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Return the columns NAME_min, NAME_p10, NAME_median and NAME_max of one value a client.

    A percentile between two values is interpolated linearly between them, as numpy does by
    default; each is None without values.

    >>> spread("x", [0.0, 1.0, 0.5])
    {'x_min': 0.0, 'x_p10': 0.1, 'x_median': 0.5, 'x_max': 1.0}
    """
    import numpy as np

    places = {f"{name}_{end}": percentile for end, (percentile, _) in SPREAD.items()}
    if not values:
        return dict.fromkeys(places)
    # Of values that are far apart, the difference may be none.
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.percentile(np.array(values), list(places.values())).tolist()
    finite = finite_only(dict(zip(places, found, strict=True)))
    return {column: finite.get(column) for column in places}


def by_class(round_number: int, confusion: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return a round's line of evaluations.jsonl.

    Args:
        round_number: of the evaluated model.
        confusion: the server's test examples by true class (rows) and predicted class.
    """
    counts = [sum(row) for row in confusion]
    return {
        "round": round_number,
        "class_counts": counts,
        "per_class_accuracy": [
            row[number] / count if count else None
            for number, (row, count) in enumerate(zip(confusion, counts, strict=True))
        ],
        "confusion": confusion,
    }


def finite_only(metrics: Mapping[str, float]) -> Metrics:
    """Return the metrics that are finite numbers: JSON has no NaN, and no mean survives one."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _columns(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = ()) -> list[str]:
    """Return a table's columns: the rows', and then a task's own, as they come."""
    found = dict.fromkeys(columns or _CSV_COLUMNS)
    for row in rows:
        found |= dict.fromkeys(sorted(own_numbers(dict(row))))
    return list(found)[: len(_CSV_COLUMNS) + _MOST_OWN]


def _writer(file: IO[str], columns: Sequence[str]) -> "csv.DictWriter[str]":
    return csv.DictWriter(file, columns, extrasaction="ignore")


def fields_of(kind: type, value: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a dataclass `kind` takes of a JSON object that another version may have written.

    What it does not know is left out. What the object lacks takes its default, or is None.
    """
    found = {}
    for one in fields(kind):
        if one.name in value:
            found[one.name] = value[one.name]
        elif one.default is MISSING and one.default_factory is MISSING:
            found[one.name] = None
    return found


class Sinks:
    """The metric files of a run directory."""

    def __init__(self, folder: Path) -> None:
        # How many lines each file has that holds others than one a round, with the lost ones.
        self._counts = {layout.CLIENTS: 0, layout.EVALUATIONS: 0}
        self._rows = folder / layout.METRICS
        self._table = folder / layout.TABLE
        self._clients = folder / layout.CLIENTS
        self._evaluations = folder / layout.EVALUATIONS

    def counts_with(
        self, clients: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Any] | None
    ) -> dict[str, int]:
        """Return how many lines clients.jsonl and evaluations.jsonl have with a round's."""
        return {
            layout.CLIENTS: self._counts[layout.CLIENTS] + len(clients),
            layout.EVALUATIONS: self._counts[layout.EVALUATIONS] + (evaluation is not None),
        }

    def append(
        self,
        row: Row,
        clients: Sequence[Mapping[str, Any]],
        evaluation: Mapping[str, Any] | None,
    ) -> None:
        """Add a committed round, its clients' rows, and its evaluation by class if there is one.

        Raises:
            OSError: a file can't be written.
        """
        append_lines(self._rows, [json.dumps(asdict(row)) + "\n"])
        append_lines(self._clients, [json.dumps(client) + "\n" for client in clients])
        if evaluation is not None:
            append_lines(self._evaluations, [json.dumps(evaluation) + "\n"])
        self._append_table(asdict(row))
        self._counts = self.counts_with(clients, evaluation)

    def reconcile(
        self,
        last: Row | None,
        clients: Iterable[Mapping[str, Any]],
        evaluation: Mapping[str, Any] | None,
        counts: Mapping[str, int],
    ) -> list[Row]:
        """Make the files end with the last committed round, and return all rows.

        Rows after it and halves of lines go; the last row is there once. Lines that were lost are
        said in the log.

        Args:
            last: the last committed round's row; None: there is none.
            clients: that round's.
            evaluation: that round's by class.
            counts: what `counts_with` returned for that round; an unknown one is not checked.
        """
        if last is None:
            for path in (self._rows, self._table, self._clients, self._evaluations):
                path.unlink(missing_ok=True)
            return []
        rows = self._read(self._rows, last.round - 1)
        found = [*(Row(**fields_of(Row, row)) for row in rows), last]
        _mention_lost(self._rows, last.round - 1 - len({row.round for row in found[:-1]}))
        self._write(self._rows, [*rows, asdict(last)])
        self._write_table([*rows, asdict(last)])
        for path, new in (
            (self._clients, list(clients)),
            (self._evaluations, [] if evaluation is None else [evaluation]),
        ):
            lines = [*self._read(path, last.round - 1), *new]
            self._counts[path.name] = counts.get(path.name, len(lines))
            _mention_lost(path, self._counts[path.name] - len(lines))
            if lines or path == self._clients:
                self._write(path, lines)
            else:
                path.unlink(missing_ok=True)
        return found

    def _append_table(self, row: Mapping[str, Any]) -> None:
        columns: list[str] = []
        if self._table.exists():
            with self._table.open(encoding="utf-8", newline="") as file:
                columns = next(csv.reader(file), [])
        if columns != _columns([row], columns):
            self._write_table(self._read(self._rows, row["round"]))
            return
        with self._table.open("a", encoding="utf-8", newline="") as file:
            _writer(file, columns).writerow({**row, **own_numbers(dict(row))})

    def _write_table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        temporary = self._table.with_name(self._table.name + ".tmp")
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = _writer(file, _columns(rows))
            writer.writeheader()
            writer.writerows({**row, **own_numbers(dict(row))} for row in rows)
        temporary.replace(self._table)

    @staticmethod
    def _read(path: Path, last_round: int) -> list[dict[str, Any]]:
        lines = []
        if path.exists():
            # What isn't text is no row either, and goes.
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        found = []
        for line in lines:
            try:
                value = json.loads(line)
            except ValueError:  # A crash cut it.
                value = None
            number = value.get("round") if isinstance(value, dict) else None
            if not isinstance(number, int):
                log.warning("a damaged line of metrics is left out", file=str(path))
            elif number <= last_round:
                found.append(value)
        return found

    @staticmethod
    def _write(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(value) + "\n" for value in values)
        temporary.replace(path)


def _mention_lost(path: Path, lost: int) -> None:
    if lost > 0:
        log.warning("rows of committed rounds are lost", file=str(path), rows=lost)
