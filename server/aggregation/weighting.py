"""How much an update may weigh, and which updates are too long to be counted. Pure."""

import math
from collections.abc import Mapping, Sequence
from statistics import median_high
from typing import NamedTuple


def capped_weights(num_examples: Sequence[int], max_share: float) -> list[float]:
    """Return n_k, lowered where it is more than `max_share` of their sum.

    All that are too heavy get one weight c, the largest with c <= max_share * sum(min(n_k, c)).
    Where there is none, because even equal shares are larger, all weigh the same. A bound on what
    one client can do, as the cap of w_k in McMahan et al. 2018 (arXiv 1710.06963), section 3.

    Args:
        num_examples: at least one, each at least 1.
        max_share: more than 0, at most 1.

    >>> capped_weights([1, 1, 8], 0.5)
    [1.0, 1.0, 2.0]
    >>> capped_weights([1, 8], 0.4)
    [1.0, 1.0]
    """
    ascending = sorted(num_examples)
    rest = sum(ascending)
    for capped, heaviest in enumerate(reversed(ascending)):
        left = 1 - max_share * capped
        cap = max_share * rest / left if left > 0 else 0.0
        if heaviest <= cap:
            return [float(n) if n <= heaviest else cap for n in num_examples]
        rest -= heaviest
    return [1.0] * len(num_examples)


class Outliers(NamedTuple):
    """The clients whose update is too long for a cohort's mean, and the median that says so."""

    clients: frozenset[str]
    median: float


def outliers(norms: Mapping[str, float], max_ratio: float) -> Outliers:
    """Return the clients whose update is longer than `max_ratio` times the median.

    The median is that of the updates that are not zero, which say nothing of how long a step is;
    of an even number it is the upper one in the middle: short updates leave out others only where
    they are more than half, so of two both stay. More than half of the updates stay.

    Args:
        norms: at least one, by client, none of them negative.
        max_ratio: at least 1; 0 is any.

    >>> outliers({"a": 1.0, "b": 2.0, "c": 0.0, "d": 3e9}, 10)
    Outliers(clients=frozenset({'d'}), median=2.0)
    """
    median = median_high([norm for norm in norms.values() if norm] or [0.0])
    most = max_ratio * median or math.inf
    return Outliers(frozenset(c for c, norm in norms.items() if norm > most), median)
