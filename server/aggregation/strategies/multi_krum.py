"""Multi-Krum: the mean of those updates that have the most others close by."""

from collections.abc import Sequence

import torch

from server.aggregation.optimizers import Optimizer
from server.aggregation.strategies.base import CannotAggregate, Contribution, Plan, Strategy
from server.aggregation.weighting import weighted_mean

# Few enough that a large cohort's rows stay in the cache.
_COLUMNS = 1 << 14


def krum_scores(products: torch.Tensor, hostile: int) -> list[float]:
    """Return each update's sum of squared distances to its n - f - 2 nearest others.

    Blanchard et al. 2017 (arXiv 1703.02757), section 4.

    Args:
        products: the updates' inner products, float64 of shape [n, n].
        hostile: f, the updates that may be anything.
    """
    norms = products.diagonal()
    distances = (norms[:, None] + norms[None, :] - 2 * products).clamp_(min=0)
    # Of float64 values, products may overflow.
    distances.nan_to_num_(nan=torch.inf)
    distances.fill_diagonal_(torch.inf)
    near = len(products) - hostile - 2
    return [float(x) for x in distances.sort(dim=1).values[:, :near].sum(dim=1)]


class MultiKrum(Strategy):
    """Blanchard et al. 2017 (arXiv 1703.02757), sections 4 and 5: the mean of the n - f best.

    All updates count alike, whatever examples they claim. Of equal scores the first ones win.

    Args:
        optimizer: takes the step.
        hostile: f; None is the most that the cohort allows, with n at least 2f + 3.
    """

    measures = True

    def __init__(self, optimizer: Optimizer, hostile: int | None) -> None:
        super().__init__(optimizer)
        self._hostile = hostile

    def measure(self, updates: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the updates' inner products."""
        products = torch.zeros(len(updates), len(updates), dtype=torch.float64)
        for start in range(0, len(updates[0]), _COLUMNS):
            parts = [update[start : start + _COLUMNS] for update in updates]
            rows = torch.stack([part.double() for part in parts])
            products.addmm_(rows, rows.T)
        return products

    def plan(self, cohort: Sequence[Contribution], measured: torch.Tensor | None) -> Plan:
        """See `Strategy.plan`."""
        count = len(cohort)
        hostile = max(0, (count - 3) // 2) if self._hostile is None else self._hostile
        if measured is None or count < 2 * hostile + 3:
            raise CannotAggregate(
                f"Multi-Krum with {hostile} hostile clients needs {2 * hostile + 3} updates, "
                f"not {count}; lower --num-hostile, or raise --report-goal and --quorum"
            )
        scores = krum_scores(measured, hostile)
        best = sorted(range(count), key=lambda index: (scores[index], index))[: count - hostile]
        weights = [float(index in best) for index in range(count)]
        return Plan(cohort, weights, float(len(best)))

    def combine(self, updates: Sequence[torch.Tensor], plan: Plan) -> torch.Tensor:
        """See `Strategy.combine`."""
        chosen = [update for update, weight in zip(updates, plan.weights, strict=True) if weight]
        return weighted_mean(chosen, [1.0] * len(chosen), plan.total)
