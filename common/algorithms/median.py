"""The coordinate-wise median: less than half of a cohort can't move it beyond the others."""

from __future__ import annotations

from collections.abc import Sequence

from common.algorithms.base import Algorithm, Plan
from common.algorithms.optimizers import Momentum, Tensor
from common.algorithms.order_statistics import mean_of_ranks


class Median(Algorithm):
    """Yin et al. 2018 (arXiv 1803.01498), definition 1 and algorithm 1, option I.

    All updates count alike, whatever examples they claim. Of an even number it is the mean of the
    two in the middle.
    """

    Options = Momentum
    weighs = False

    def combine(self, updates: Sequence[Tensor], plan: Plan) -> Tensor:
        count = len(updates)
        return mean_of_ranks(updates, {(count - 1) // 2, count // 2})
