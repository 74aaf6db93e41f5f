"""Shows a division of the training data before anything is trained on it: a table and a picture.

The options are the server's, and the division is the one that its clients would make.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from common.errors import InputError
from common.option_types import Count
from common.tasks import load_examples, load_task
from scripts.cli import command_line, run_app
from scripts.division import Part, parts_of
from scripts.division_picture import draw
from server.configuration import data_split, resolve_split
from server.options import SplitOptions

# More partitions than these are shown by a few of them, from the largest to the smallest.
_MOST_ROWS, _ROWS_OF_MORE = 20, 5
# Of more classes, the table says how many a partition has.
_MOST_COLUMNS = 12

app = command_line("show_split")


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
    # By class or not: as the server finds it in the test set.
    given = split.partitioner or found.partitioner
    targets = None if given else load_examples(found, data_dir, train=False).targets
    options = resolve_split(split, found, seed, targets)
    how = data_split(options)
    divided = parts_of(found, data_dir, how)
    parts = divided.parts
    title = f"{task}, {how.partitioner.value}: {divided.summary()}"
    names = [part.name for part in parts]
    try:
        draw(names, divided.sizes, divided.counts, title, found.class_names).savefig(
            output, dpi=120
        )
    except (OSError, ValueError) as error:
        raise InputError(f"--output: can't write {output}: {error}") from error
    if json:
        _print_json(parts)
    else:
        print(title, end="\n\n")
        _print_table(parts)
        print(f"\nPicture: {output}")


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
