"""The coordinate-wise trimmed mean: the largest and the smallest values do not count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from common.algorithms.base import Algorithm, Contribution, Momentum, Notes, Plan
from common.algorithms.order_statistics import mean_of_ranks
from common.option_types import BelowHalf

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class TrimmedMeanOptions(Momentum):
    """The trimmed mean's options."""

    trim_fraction: Annotated[
        BelowHalf, Parameter(help="Share of the updates that trimmed-mean leaves out at each end.")
    ] = 0.2


class TrimmedMean(Algorithm):
    """Yin et al. 2018 (arXiv 1803.01498), definition 2 and algorithm 1, option II.

    All updates count alike, whatever examples they claim. The fraction that is left out at each end
    is rounded down to whole updates.
    """

    takes = TrimmedMeanOptions
    options: TrimmedMeanOptions
    weighs = False

    def plan(
        self, cohort: Sequence[Contribution], measured: torch.Tensor | None, notes: Notes
    ) -> Plan:
        """See `Algorithm.plan`."""
        return Plan(cohort)

    def combine(self, updates: Sequence[torch.Tensor], plan: Plan) -> torch.Tensor:
        """See `Algorithm.combine`."""
        count = len(updates)
        # Rounded first: 0.29 * 100 is a little under 29 in binary.
        trimmed = int(round(self.options.trim_fraction * count, 9))
        return mean_of_ranks(updates, range(trimmed, count - trimmed))
