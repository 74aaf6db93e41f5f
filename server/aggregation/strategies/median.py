"""The coordinate-wise median: less than half of a cohort can't move it beyond the others."""

from collections.abc import Sequence

import torch

from server.aggregation.strategies.base import Contribution, Plan, Strategy
from server.aggregation.strategies.order_statistics import mean_of_ranks


class Median(Strategy):
    """Yin et al. 2018 (arXiv 1803.01498), definition 1 and algorithm 1, option I.

    All updates count alike, whatever examples they claim. Of an even number it is the mean of the
    two in the middle.
    """

    def plan(self, cohort: Sequence[Contribution], measured: torch.Tensor | None) -> Plan:
        """See `Strategy.plan`."""
        return Plan(cohort)

    def combine(self, updates: Sequence[torch.Tensor], plan: Plan) -> torch.Tensor:
        """See `Strategy.combine`."""
        count = len(updates)
        return mean_of_ranks(updates, {(count - 1) // 2, count // 2})
