"""Norm bounding: an update that is longer than allowed counts as one of the length allowed."""

from collections.abc import Sequence

import torch

from server.aggregation.optimizers import Optimizer
from server.aggregation.strategies.base import Contribution, Plan, Strategy


class NormBounding(Strategy):
    """Sun et al. 2019 (arXiv 1911.07963), section 3, "norm thresholding of updates".

    sum(n_k * update_k * min(1, bound / |update_k|)) / sum(n_k).

    Args:
        optimizer: takes the step.
        bound: L2 norm of an update's floating-point values, above which it is scaled down.
    """

    measures = True

    def __init__(self, optimizer: Optimizer, bound: float) -> None:
        super().__init__(optimizer)
        self._bound = bound

    def measure(self, updates: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return each update's sum of squares."""
        norms = [torch.linalg.vector_norm(update, dtype=torch.float64) for update in updates]
        return torch.stack(norms).square()

    def plan(self, cohort: Sequence[Contribution], measured: torch.Tensor | None) -> Plan:
        """See `Strategy.plan`."""
        squares = torch.zeros(len(cohort)) if measured is None else measured
        total = sum(one.weight for one in cohort)
        weights = [
            one.weight * min(1.0, self._bound / norm) if norm else one.weight
            for one, norm in zip(cohort, squares.sqrt().tolist(), strict=True)
        ]
        return Plan(cohort, weights, total)
