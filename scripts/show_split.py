"""Shows a division of the training data before anything is trained on it: a table and a picture.

The options are the server's, and the division is the one that its clients would make.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from cyclopts import App, Parameter
from numpy.typing import NDArray

from client.data import divide
from common.errors import InputError
from common.splits import Indices, Partitioner, hold_out
from common.tasks import Examples, load_task
from scripts.commands import run_app
from scripts.split_picture import draw
from server.configuration import data_split, resolve_split
from server.options import Count, SplitOptions

# More partitions than these are shown by a few of them, from the largest to the smallest.
_MOST_ROWS, _ROWS_OF_MORE = 20, 5
# Of more classes, the table says how many a partition has; of still more, nothing.
_MOST_COLUMNS, _MOST_CLASSES = 12, 100

app = App(
    name="./scripts/show_split",
    help="Shows which examples each client would hold, as a table and a picture, before training.",
    version_flags=(),
    help_format="plaintext",
)


class Part(NamedTuple):
    """One partition: whose it is (in natural splits), its sizes, and its examples of each class."""

    partition: int
    owner: str | None
    examples: int
    training: int
    validation: int
    classes: list[int] | None

    @property
    def name(self) -> str:
        """Return its number, and its owner if it has one."""
        return str(self.partition) if self.owner is None else f"{self.partition} ({self.owner})"


@app.default
def show(
    *,
    task: str = "digits",
    data_dir: Path = Path("data"),
    seed: Count = 0,
    split: SplitOptions = SplitOptions(),  # noqa: B008
    output: Path = Path("split.png"),
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Show which examples each client would hold, as a table and a picture, before training.

    Args:
        task: One of the built-in tasks, or your own as package.module:attribute.
        data_dir: Folder of the training data, for tasks that read files.
        seed: The run's seed, which the division has unless --partition-seed is given.
        split: how to divide.
        output: The picture; what is there is written over.
        json: Print JSON, one object a partition.
    """
    found = load_task(task)
    options = resolve_split(split, found, seed)
    how = data_split(options)
    examples, indices = divide(found, data_dir, how)
    owners = found.owners(data_dir) if how.partitioner is Partitioner.NATURAL else None
    counts = _class_counts(examples, indices)
    parts = []
    for number, chosen in enumerate(indices):
        training, validation = map(len, hold_out(chosen, how, number))
        owner = None if owners is None else owners[chosen[0]]
        classes = None if counts is None else counts[number].tolist()
        parts.append(Part(number, owner, len(chosen), training, validation, classes))
    title = f"{task}, {how.partitioner.value}: {_summary(parts, len(examples.targets))}"
    try:
        draw([p.name for p in parts], np.array([p.examples for p in parts]), counts, title, output)
    except (OSError, ValueError) as error:
        raise InputError(f"--output: can't write {output}: {error}") from error
    if json:
        _print_json(parts)
    else:
        print(title, end="\n\n")
        _print_table(parts)
        print(f"\nPicture: {output}")


def _class_counts(examples: Examples, parts: Sequence[Indices]) -> NDArray[np.int64] | None:
    """Return the examples of each partition and class; None where an example has no one class."""
    targets = examples.targets
    if targets.is_floating_point() or targets.numel() != len(targets):
        return None
    labels = targets.reshape(-1).long().numpy()
    if labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        return None
    return np.stack([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts])


def _summary(parts: Sequence[Part], total: int) -> str:
    said = f"{len(parts)} partitions of {_range(part.examples for part in parts)} examples"
    if parts[0].classes is not None:
        present = (sum(map(bool, part.classes or [])) for part in parts)
        said += f" and {_range(present)} classes"
    held = sum(part.examples for part in parts)
    return said + (f"; {total - held:,} of {total:,} left out" if held < total else "")


def _range(values: Iterable[int]) -> str:
    low, middle, high = np.quantile(list(values), [0, 0.5, 1])
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f} (median {middle:,.0f})"


def _print_table(parts: Sequence[Part]) -> None:
    if len(parts) > _MOST_ROWS:
        print(f"{_ROWS_OF_MORE} of them, from the largest to the smallest:")
        ranked = sorted(parts, key=lambda part: -part.examples)
        parts = [ranked[int(i)] for i in np.linspace(0, len(parts) - 1, _ROWS_OF_MORE)]
    classes = len(parts[0].classes or [])
    names = [str(i) for i in range(classes)] if classes <= _MOST_COLUMNS else ["classes"]
    rows = [["partition", "examples", "training", "validation", *names]]
    for part in parts:
        counts = part.classes or []
        if classes > _MOST_COLUMNS:
            counts = [sum(map(bool, counts))]
        sizes = (part.examples, part.training, part.validation)
        cells = (f"{count:,}" if count else "·" for count in (*sizes, *counts))
        rows.append([part.name, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def _print_json(parts: Iterable[Part]) -> None:
    for part in parts:
        print(json.dumps(part._asdict()))


if __name__ == "__main__":
    sys.exit(run_app(app))
