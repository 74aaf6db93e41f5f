"""The coordinate-wise median: less than half of a cohort can't move it beyond the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.algorithms.base import Algorithm, Contribution, Momentum, Notes, Plan
from common.algorithms.order_statistics import mean_of_ranks

if TYPE_CHECKING:
    import torch


class Median(Algorithm):
    """Yin et al. 2018 (arXiv 1803.01498), definition 1 and algorithm 1, option I.

    All updates count alike, whatever examples they claim. Of an even number it is the mean of the
    two in the middle.
    """

    takes = Momentum
    weighs = False

    def plan(
        self, cohort: Sequence[Contribution], measured: torch.Tensor | None, notes: Notes
    ) -> Plan:
        """See `Algorithm.plan`."""
        return Plan(cohort)

    def combine(self, updates: Sequence[torch.Tensor], plan: Plan) -> torch.Tensor:
        """See `Algorithm.combine`."""
        count = len(updates)
        return mean_of_ranks(updates, {(count - 1) // 2, count // 2})
