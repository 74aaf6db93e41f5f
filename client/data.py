"""The training data of a process, loaded once, and each partition's two parts of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common.errors import DataError, InputError
from common.splits import Indices, Partitioner, Split, check_targets, hold_out, partition
from common.tasks import Examples, Task, failing_data, load_examples


class LocalData(NamedTuple):
    """One partition's training and validation examples."""

    train: Examples
    validation: Examples


class Division(NamedTuple):
    """All training examples, the indices of each partition's, and whose each partition is.

    Only natural partitions are somebody's; of others, there are no owners.
    """

    examples: Examples
    parts: list[Indices]
    owners: Sequence[str]


def load_partitions(
    task: Task, data_dir: Path, split: Split, indices: list[int], device: str
) -> dict[int, LocalData]:
    """Return the data of the partitions `indices`, on `device`.

    Raises:
        DataError: the data is missing or can't be read.
        InputError: it can't be divided so, or there is no such partition.
    """
    import torch

    examples, parts, _ = divide(task, data_dir, split)

    def take(chosen: Indices) -> Examples:
        where = torch.from_numpy(chosen)
        return Examples(examples.inputs[where].to(device), examples.targets[where].to(device))

    held: dict[int, LocalData] = {}
    for index in indices:
        if index >= len(parts):
            raise InputError(
                f"--partition: {index} is not one of the run's 0 to {len(parts) - 1} "
                "(the server's --num-partitions)"
            )
        training, validation = hold_out(parts[index], split, index)
        with failing_data(task):
            held[index] = LocalData(take(training), take(validation))
    return held


def divide(task: Task, data_dir: Path, split: Split) -> Division:
    """Return how all clients would divide the training data.

    Raises:
        DataError: the data is missing or can't be read.
        InputError: it can't be divided so.
    """
    examples = load_examples(task, data_dir, train=True)
    with failing_data(task):
        targets = examples.targets
        check_targets(split.partitioner, targets.shape, whole=not targets.is_floating_point())
        labels = targets.reshape(len(targets), -1)[:, 0].numpy()
    if split.partitioner is not Partitioner.NATURAL:
        return Division(examples, partition(labels, split), ())
    with failing_data(task):
        owners = task.owners(data_dir)
    if len(owners) != len(labels):
        raise DataError(
            f"--data-dir: the task gave {len(labels)} examples and {len(owners)} owners; "
            "each example needs one owner"
        )
    parts = partition(labels, split, owners)
    return Division(examples, parts, [owners[part[0]] for part in parts])
