"""Sorts a cohort's values of each coordinate at once, by a network of minima and maxima.

A sort along columns goes value by value; here each step compares two whole rows, as fast as the
memory of a core's cache. No value is NaN.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Row: TypeAlias = NDArray[np.float32] | NDArray[np.float64]

# 128 kB of float32: a cohort's rows are within reach of a core's second cache.
_COLUMNS = 1 << 15


@cache
def network(count: int, wanted: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the comparators (i, j), i < j, that bring the `wanted` ranks to their places.

    Batcher's merge exchange (Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M), less
    those comparators that no wanted rank depends on.

    >>> network(2, (0, 1))
    [(0, 1)]
    """
    comparators = list(_merge_exchange(count))
    needed = set(wanted)
    kept = []
    for low, high in reversed(comparators):
        if low in needed or high in needed:
            kept.append((low, high))
            needed |= {low, high}
    return kept[::-1]


def _merge_exchange(count: int) -> Iterator[tuple[int, int]]:
    top = 1 << ((count - 1).bit_length() - 1) if count > 1 else 0
    p = top
    while p:
        q, r, d = top, 0, p
        while d:
            for low in range(count - d):
                if low & p == r:
                    yield low, low + d
            d, q, r = q - p, q >> 1, p
        p >>= 1


def ranks(updates: Sequence[torch.Tensor], wanted: Collection[int]) -> Iterator[list[Row]]:
    """Yield the rows of the `wanted` ranks, ascending, for a few coordinates after the other.

    Args:
        updates: of shape [window] each; compared as float32 where that holds all their values.
        wanted: ranks among the updates, from 0 for the smallest.
    """
    import numpy as np
    import torch

    order = sorted(wanted)
    comparators = network(len(updates), tuple(order))
    exact = updates[0].dtype in (torch.float32, torch.float16, torch.bfloat16)
    dtype = torch.float32 if exact else torch.float64
    for start in range(0, len(updates[0]), _COLUMNS):
        parts = [update[start : start + _COLUMNS] for update in updates]
        rows: list[Row] = [part.to(dtype, copy=True).numpy() for part in parts]
        spare = np.empty_like(rows[0])
        for low, high in comparators:
            np.minimum(rows[low], rows[high], out=spare)
            np.maximum(rows[low], rows[high], out=rows[high])
            rows[low], spare = spare, rows[low]
        yield [rows[rank] for rank in order]


def mean_of_ranks(updates: Sequence[torch.Tensor], wanted: Collection[int]) -> torch.Tensor:
    """Return the mean of the `wanted` ranks of each coordinate; float64, shape [window]."""
    import numpy as np
    import torch

    means = [np.add.reduce(rows, dtype=np.float64) / len(rows) for rows in ranks(updates, wanted)]
    return torch.from_numpy(np.concatenate(means)) if means else torch.zeros(0).double()
