"""What a run's rows of metrics come to: the best round, the last, sums; the same for all readers.

Rows may come from older versions, or be damaged: what is no finite number is not there. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.printable import printable
from server.storage import run_files
from server.storage.columns import COLUMNS
from server.storage.run_files import Line

Numbers = Mapping[str, float]

# Of the task's own metrics; clients may name theirs as they like.
_MOST_OWN = 32
# Beyond these, names are cut.
_LONGEST_NAME = 200


def plain(value: object) -> str:
    """Return text that any page and any font can show, on one line."""
    return printable(str(value), _LONGEST_NAME)


def numbers(line: Line) -> dict[str, float]:
    """Return what is a finite number; of a task's own metrics, as global_<name>, client_<name>."""
    found = run_files.numbers(line)
    return {name if name in line else plain(name): value for name, value in found.items()}


def by_round(lines: Iterable[Line]) -> list[Line]:
    """Return the lines that say their round, in order; of several the last."""
    found = {line["round"]: line for line in lines if type(line.get("round")) is int}
    return [found[number] for number in sorted(found)]


def own_names(rows: Iterable[Numbers]) -> list[str]:
    """Return the columns of the task's own metrics: global_<name> and client_<name>."""
    found = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    return sorted(name for name in found if name.startswith(("global_", "client_")))[:_MOST_OWN]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A run's committed rounds."""

    # Of each committed round, ascending; what is not known is not there.
    rows: Sequence[Numbers]

    @property
    def last(self) -> Numbers:
        """Return the last round's row; empty before the first."""
        return self.rows[-1] if self.rows else {}

    @property
    def best(self) -> Numbers:
        """Return the row of the round that the server called the best; of none, the last one."""
        best = self.last.get("best_round")
        return next((row for row in self.rows if row["round"] == best), self.last)

    @property
    def best_is_known(self) -> bool:
        """Say whether a round was called the best, as it is by accuracy, or else by loss."""
        return bool(self.rows) and self.last.get("best_round") == self.best["round"]

    @property
    def side(self) -> str:
        """Return whose evaluation counts: "global", the server's; if it has none, "client"."""
        evaluated = any({"global_accuracy", "global_loss"} & {*row} for row in self.rows)
        return "global" if evaluated else "client"

    @property
    def measure(self) -> str:
        """Return what a round is the best by: "accuracy", or "loss" where there is none."""
        return "accuracy" if any(f"{self.side}_accuracy" in row for row in self.rows) else "loss"

    @property
    def final(self) -> Numbers:
        """Return the last row in which that is known; empty if it is in none."""
        name = f"{self.side}_{self.measure}"
        return next((row for row in reversed(self.rows) if name in row), {})

    def of(self, row: Numbers, measure: str | None = None) -> float | None:
        """Return a row's accuracy or loss on that side, if it is known."""
        return row.get(f"{self.side}_{measure or self.measure}")

    def total(self, name: str) -> float | None:
        """Return a column's sum; None where no row has it."""
        found = [row[name] for row in self.rows if name in row]
        return sum(found) if found else None


def summary_of(lines: Iterable[Line]) -> Summary:
    """Return the summary of a run's lines of metrics."""
    return Summary(rows=[numbers(line) for line in by_round(lines)])
