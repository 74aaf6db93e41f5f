"""A division of the training data among clients: each partition's sizes, owner and classes.

Knows nothing about how it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, InputError
from common.loading import describe
from common.splits import Indices, Split, hold_out
from common.tasks import Examples, Task, load_task_of_run
from server.configuration import data_split
from server.options import SplitOptions
from server.storage import layout

# Of more classes, the examples of each are not counted.
_MOST_CLASSES = 100


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


@dataclass(frozen=True)
class Parts:
    """All partitions, and how many examples there are in all, those that are in none too."""

    parts: Sequence[Part]
    total: int

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Return the examples of each partition, shape [partitions]."""
        return np.array([part.examples for part in self.parts])

    @property
    def counts(self) -> NDArray[np.int64] | None:
        """Return the examples of each class, shape [partitions, classes]; None without classes."""
        classes = [part.classes for part in self.parts if part.classes is not None]
        return np.array(classes) if classes else None

    def summary(self) -> str:
        """Return how many there are of what size, in one line."""
        said = f"{len(self.parts)} partitions of {_range(self.sizes)} examples"
        if (counts := self.counts) is not None:
            said += f" and {_range((counts > 0).sum(1))} classes"
        left_out = self.total - sum(self.sizes)
        return said + (f"; {left_out:,} of {self.total:,} left out" if left_out > 0 else "")


def parts_of(task: Task, data_dir: Path, split: Split) -> Parts:
    """Return the division that a run's clients would make.

    Raises:
        DataError: the data is missing or can't be read.
        InputError: it can't be divided so.
    """
    from client.data import divide

    examples, indices, owners = divide(task, data_dir, split)
    counts = _class_counts(examples, indices)
    parts = []
    for number, chosen in enumerate(indices):
        training, validation = map(len, hold_out(chosen, split, number))
        owner = owners[number] if owners else None
        classes = None if counts is None else counts[number].tolist()
        parts.append(Part(number, owner, len(chosen), training, validation, classes))
    return Parts(parts, len(examples.targets))


def parts_of_run(options: Mapping[str, Any], named: str | None = None) -> Parts:
    """Return the division of a run, by its resolved options; nothing is downloaded for it.

    Args:
        options: of the run.
        named: its task, if that is none of the built-in ones.

    Raises:
        DataError: the data isn't, or each client has data of its own.
        InputError: the task or an option is not what a run of this version has.
    """
    if options.get("partitioner") == "none":
        raise DataError("--partitioner none: each client trains on data of its own")
    try:
        how = SplitOptions(**{field.name: options[field.name] for field in fields(SplitOptions)})
        name, data_dir, split = str(options["task"]), Path(options["data_dir"]), data_split(how)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{layout.CONFIG}: an option is missing or damaged: {error}") from error
    task = load_task_of_run(name, named)
    if task.would_download(data_dir):
        raise DataError(f"--data-dir: the data of {name} is not in {data_dir}")
    try:
        return parts_of(task, data_dir, split)
    except InputError:
        raise
    # A task's own code, or options that were changed by hand.
    except Exception as error:
        raise DataError(f"--task: {name!r}: {describe(error)}") from error


def _class_counts(examples: Examples, parts: Sequence[Indices]) -> NDArray[np.int64] | None:
    """Return the examples of each partition and class; None where an example has no one class."""
    targets = examples.targets
    if targets.is_floating_point() or targets.numel() != len(targets):
        return None
    labels = targets.reshape(-1).long().numpy()
    if labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        return None
    return np.stack([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts])


def _range(values: Iterable[int]) -> str:
    low, middle, high = np.quantile(list(values), [0, 0.5, 1])
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f} (median {middle:,.0f})"
