"""Norm bounding: an update that is longer than allowed counts as one of the length allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from common.algorithms.base import Algorithm, Cohort, Notes, Plan
from common.algorithms.optimizers import Momentum, Tensor
from common.errors import InputError
from common.option_types import PositiveFloat


class NormBounding(Algorithm):
    """Sun et al. 2019 (arXiv 1911.07963), section 3, "norm thresholding of updates".

    sum(n_k * update_k * min(1, bound / |update_k|)) / sum(n_k), where |update_k| is the L2 norm of
    an update's floating-point values.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Momentum):
        norm_bound: Annotated[
            PositiveFloat | None,
            Parameter(help="L2 norm to which norm-bounding clips updates."),
        ] = None

    options: Options
    bounds_norms = True

    def check(self) -> None:
        super().check()
        if self.options.norm_bound is None:
            raise InputError(
                f"--norm-bound: --strategy {self.setting.name} needs the L2 norm that updates are "
                "scaled down to, e.g. --norm-bound 1.0"
            )

    def measure(self, updates: Sequence[Tensor]) -> Tensor:
        """Return each update's sum of squares."""
        import torch

        norms = [torch.linalg.vector_norm(update, dtype=torch.float64) for update in updates]
        return torch.stack(norms).square()

    def plan(self, cohort: Cohort, measured: Tensor | None, notes: Notes) -> Plan:
        import torch

        bound = self.options.norm_bound or 0.0
        squares = torch.zeros(len(cohort)) if measured is None else measured
        total = sum(one.weight for one in cohort)
        weights = [
            one.weight * min(1.0, bound / norm) if norm else one.weight
            for one, norm in zip(cohort, squares.sqrt().tolist(), strict=True)
        ]
        return Plan(cohort, weights, total)
