"""How the training data is divided among partitions: pure functions of labels, owners and a split.

Every machine computes the same division by itself, so only the few numbers of a `Split`
travel. Knows nothing about tensors, tasks or clients.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.seeds import derive_seed

Indices = NDArray[np.int64]

_DRAWS = 100


class Partitioner(Enum):
    """The schemes, by the name of the --partitioner flag."""

    IID = "iid"
    DIRICHLET = "dirichlet"
    SHARDS = "shards"
    QUANTITY = "quantity"
    NATURAL = "natural"
    NONE = "none"


_BY_CLASS = (Partitioner.DIRICHLET, Partitioner.SHARDS)


@dataclass(frozen=True, kw_only=True)
class Split:
    """A division of the training data; the fields are those of federated.proto's DataSplit."""

    partitioner: Partitioner
    num_partitions: int
    alpha: float
    shards_per_client: int
    seed: int
    validation_fraction: float


def check_targets(partitioner: Partitioner, shape: Sequence[int], *, whole: bool) -> None:
    """Refuse a scheme that divides by class where targets are no classes.

    Args:
        partitioner: the scheme.
        shape: of all targets, [n, ...].
        whole: they are whole numbers.

    Raises:
        InputError: it does, and they are not.
    """
    if partitioner not in _BY_CLASS or are_classes(shape, whole=whole):
        return
    count = math.prod(shape[1:])
    what = f"have {count} targets each" if count != 1 else "have real numbers as targets"
    raise InputError(
        f"--partitioner: {partitioner.value} divides by class, but this task's examples {what}, "
        "not one class; use iid, quantity, natural or none"
    )


def are_classes(shape: Sequence[int], *, whole: bool) -> bool:
    """Say whether all targets, of shape [n, ...], are one class for each example."""
    return whole and math.prod(shape[1:]) == 1


def partition(labels: NDArray[np.int64], split: Split, owners: Sequence[str] = ()) -> list[Indices]:
    """Return, for each partition, the indices of its examples, ascending.

    Partitions are disjoint, none is empty, and together they hold every example once.
    Two schemes are otherwise: with NONE, where nothing is divided, each holds all; with
    NATURAL, partition k holds the examples of the owner with the k-th most of them (of
    equals, the first by name), and those of the owners after the last partition are in none.

    Args:
        labels: shape [n], the class of each example, from 0.
        split: how to divide; `validation_fraction` plays no part here.
        owners: n names, whose each example is; for NATURAL.

    Raises:
        InputError: the labels can't be divided so; the message names the flag.
    """
    if split.partitioner is Partitioner.NONE:
        return [np.arange(len(labels))] * split.num_partitions
    if split.num_partitions > len(labels):
        raise InputError(
            f"--num-partitions: {split.num_partitions} partitions of {len(labels)} examples "
            "leave some empty; use fewer"
        )
    rng = np.random.default_rng(split.seed)
    if split.partitioner is Partitioner.NATURAL:
        parts: Sequence[Indices] = _natural(owners, split.num_partitions)
    elif split.partitioner is Partitioner.IID:
        parts = np.array_split(rng.permutation(len(labels)), split.num_partitions)
    elif split.partitioner is Partitioner.DIRICHLET:
        parts = _dirichlet(labels, split.num_partitions, split.alpha, rng)
    elif split.partitioner is Partitioner.QUANTITY:
        parts = _quantity(len(labels), split.num_partitions, split.alpha, rng)
    else:
        parts = _shards(labels, split.num_partitions, split.shards_per_client, rng)
    return [np.sort(part) for part in parts]


def hold_out(indices: Indices, split: Split, index: int) -> tuple[Indices, Indices]:
    """Divide one partition into its training and its validation part.

    The validation part is the validation fraction of the partition, rounded down, and never all of
    it, so that a partition of one example still trains.
    """
    count = min(int(len(indices) * split.validation_fraction), len(indices) - 1)
    rng = np.random.default_rng(derive_seed(split.seed, "validation", index))
    shuffled = rng.permutation(indices)
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])


def _dirichlet(
    labels: NDArray[np.int64], count: int, alpha: float, rng: np.random.Generator
) -> Sequence[Indices]:
    """Divide each class by proportions from Dirichlet(alpha): Li et al. 2022, section IV-A.

    (arXiv 2102.02079.) Drawn again while a partition is empty.
    """
    for _ in range(_DRAWS):
        parts: list[list[Indices]] = [[] for _ in range(count)]
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            for part, chosen in zip(parts, _cut(members, count, alpha, rng), strict=True):
                part.append(chosen)
        joined = [np.concatenate(part) for part in parts]
        if all(len(part) for part in joined):
            return joined
    raise _always_empty(count, alpha)


def _quantity(total: int, count: int, alpha: float, rng: np.random.Generator) -> Sequence[Indices]:
    """Divide all examples by proportions from Dirichlet(alpha): Li et al. 2022, section IV-A.

    (arXiv 2102.02079, quantity skew.) Drawn again while a partition is empty.
    """
    for _ in range(_DRAWS):
        parts = _cut(rng.permutation(total), count, alpha, rng)
        if all(len(part) for part in parts):
            return parts
    raise _always_empty(count, alpha)


def _cut(members: Indices, count: int, alpha: float, rng: np.random.Generator) -> Sequence[Indices]:
    shares = np.cumsum(rng.dirichlet(np.full(count, alpha)))[:-1]
    return np.split(members, np.floor(shares * len(members)).astype(np.int64))


def _always_empty(count: int, alpha: float) -> InputError:
    return InputError(
        f"--alpha: {alpha} leaves a partition empty in each of {_DRAWS} draws over "
        f"{count} partitions; use a larger alpha or fewer partitions"
    )


def _natural(owners: Sequence[str], count: int) -> Sequence[Indices]:
    """Give each partition one owner's examples, the largest owner's first."""
    numbers: dict[str, int] = {}
    by_example = np.fromiter((numbers.setdefault(o, len(numbers)) for o in owners), np.int64)
    if count > len(numbers):
        raise InputError(
            f"--num-partitions: {count} partitions, but the examples have {len(numbers)} owners; "
            "use as many, or fewer"
        )
    sizes = np.bincount(by_example)
    ranked = sorted(numbers, key=lambda owner: (-sizes[numbers[owner]], owner))
    parts = np.split(np.argsort(by_example, kind="stable"), np.cumsum(sizes)[:-1])
    return [parts[numbers[owner]] for owner in ranked[:count]]


def _shards(
    labels: NDArray[np.int64], count: int, per_client: int, rng: np.random.Generator
) -> Sequence[Indices]:
    """Sort by label, cut into equal shards and deal them out: McMahan et al. 2017, section 3.

    (arXiv 1602.05629.)
    """
    total = count * per_client
    if total > len(labels):
        raise InputError(
            f"--shards-per-client: {total} shards of {len(labels)} examples leave some empty; "
            "use fewer shards or fewer partitions"
        )
    # Shuffled first, so that which examples of a class share a shard depends on the seed.
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    shards = np.array_split(order, total)
    dealt = rng.permutation(total).reshape(count, per_client)
    return [np.concatenate([shards[shard] for shard in hand]) for hand in dealt]
