"""Multi-Krum: the mean of those updates that have the most others close by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from common.algorithms.base import Algorithm, CannotAggregate, Cohort, Notes, Plan
from common.algorithms.optimizers import Momentum, Tensor
from common.algorithms.weighting import weighted_mean
from common.errors import InputError
from common.option_types import Count

# Few enough that a large cohort's rows stay in the cache.
_COLUMNS = 1 << 14


def krum_scores(products: Tensor, hostile: int) -> list[float]:
    """Return each update's sum of squared distances to its n - f - 2 nearest others.

    Blanchard et al. 2017 (arXiv 1703.02757), section 4.

    Args:
        products: the updates' inner products, float64 of shape [n, n].
        hostile: f, the updates that may be anything.
    """
    import torch

    norms = products.diagonal()
    distances = (norms[:, None] + norms[None, :] - 2 * products).clamp_(min=0)
    # Of float64 values, products may overflow.
    distances.nan_to_num_(nan=torch.inf)
    distances.fill_diagonal_(torch.inf)
    near = len(products) - hostile - 2
    return [float(x) for x in distances.sort(dim=1).values[:, :near].sum(dim=1)]


class MultiKrum(Algorithm):
    """Blanchard et al. 2017 (arXiv 1703.02757), sections 4 and 5: the mean of the n - f best.

    All updates count alike, whatever examples they claim. Of equal scores the first ones win. n is
    at least 2f + 3; f, if not given, is the most that the cohort allows.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Momentum):
        num_hostile: Annotated[
            Count | None,
            Parameter(
                help="Byzantine updates that multi-krum tolerates (f). Default: the largest f "
                "with n >= 2f + 3."
            ),
        ] = None

    options: Options
    weighs = False
    bounds_norms = True

    def check(self) -> None:
        super().check()
        needed, wanted = 2 * (self.options.num_hostile or 0) + 3, self.setting.wanted
        if wanted < needed:
            raise InputError(
                f"--strategy: {self.setting.name} needs {needed} updates (2 * --num-hostile + 3), "
                f"and a round wants {wanted}; raise --fraction or --report-goal, or have more "
                "clients"
            )

    def measure(self, updates: Sequence[Tensor]) -> Tensor:
        """Return the updates' inner products."""
        import torch

        products = torch.zeros(len(updates), len(updates), dtype=torch.float64)
        for start in range(0, len(updates[0]), _COLUMNS):
            parts = [update[start : start + _COLUMNS] for update in updates]
            rows = torch.stack([part.double() for part in parts])
            products.addmm_(rows, rows.T)
        return products

    def plan(self, cohort: Cohort, measured: Tensor | None, notes: Notes) -> Plan:
        count, hostile = len(cohort), self.options.num_hostile
        hostile = max(0, (count - 3) // 2) if hostile is None else hostile
        if measured is None or count < 2 * hostile + 3:
            raise CannotAggregate(
                f"Multi-Krum with {hostile} hostile clients needs {2 * hostile + 3} updates, "
                f"not {count}; lower --num-hostile, or raise --report-goal and --quorum"
            )
        scores = krum_scores(measured, hostile)
        best = sorted(range(count), key=lambda index: (scores[index], index))[: count - hostile]
        weights = [float(index in best) for index in range(count)]
        return Plan(cohort, weights, float(len(best)))

    def combine(self, updates: Sequence[Tensor], plan: Plan) -> Tensor:
        chosen = [update for update, weight in zip(updates, plan.weights, strict=True) if weight]
        return weighted_mean(chosen, [1.0] * len(chosen), plan.total)
