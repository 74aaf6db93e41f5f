"""The coordinate-wise trimmed mean: the largest and the smallest values do not count."""

from collections.abc import Sequence

import torch

from server.aggregation.optimizers import Optimizer
from server.aggregation.strategies.base import Contribution, Plan, Strategy
from server.aggregation.strategies.order_statistics import mean_of_ranks


class TrimmedMean(Strategy):
    """Yin et al. 2018 (arXiv 1803.01498), definition 2 and algorithm 1, option II.

    All updates count alike, whatever examples they claim.

    Args:
        optimizer: takes the step.
        fraction: of the cohort that is left out at each end, rounded down; less than 0.5.
    """

    def __init__(self, optimizer: Optimizer, fraction: float) -> None:
        super().__init__(optimizer)
        self._fraction = fraction

    def plan(self, cohort: Sequence[Contribution], measured: torch.Tensor | None) -> Plan:
        """See `Strategy.plan`."""
        return Plan(cohort)

    def combine(self, updates: Sequence[torch.Tensor], plan: Plan) -> torch.Tensor:
        """See `Strategy.combine`."""
        count = len(updates)
        # Rounded first: 0.29 * 100 is a little under 29 in binary.
        trimmed = int(round(self._fraction * count, 9))
        return mean_of_ranks(updates, range(trimmed, count - trimmed))
