"""The coordinate-wise trimmed mean: the largest and the smallest values do not count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from common.algorithms.base import Algorithm, Plan
from common.algorithms.optimizers import Momentum, Tensor
from common.algorithms.order_statistics import mean_of_ranks
from common.option_types import BelowHalf


class TrimmedMean(Algorithm):
    """Yin et al. 2018 (arXiv 1803.01498), definition 2 and algorithm 1, option II.

    All updates count alike, whatever examples they claim. The fraction that is left out at each end
    is rounded down to whole updates.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Momentum):
        trim_fraction: Annotated[
            BelowHalf,
            Parameter(help="Fraction of the values that trimmed-mean removes at each end."),
        ] = 0.2

    options: Options
    weighs = False

    def combine(self, updates: Sequence[Tensor], plan: Plan) -> Tensor:
        count = len(updates)
        # Rounded first: 0.29 * 100 is a little under 29 in binary.
        trimmed = int(round(self.options.trim_fraction * count, 9))
        return mean_of_ranks(updates, range(trimmed, count - trimmed))
