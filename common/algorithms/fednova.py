"""FedNova: clients that do unequal numbers of local steps count as if they did equal ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from common.algorithms.base import Algorithm, CannotAggregate, Cohort, Notes, Plan
from common.algorithms.optimizers import Momentum, Tensor
from common.algorithms.weighting import weighted_mean
from common.errors import InputError


def norm_of_steps(steps: int, learning_rate: float, momentum: float, proximal_mu: float) -> float:
    """Return by how much `steps` local steps add up: with plain SGD, `steps`.

    That is the sum of a in Wang et al. 2020 (arXiv 2007.07481), section 3.1, where it is |a|_1, as
    none of a is negative: with momentum rho the gradient of step k counts
    (1 - rho^(steps-k)) / (1 - rho) times, with a proximal term (1 - lr*mu)^(steps-1-k) times.

    >>> norm_of_steps(4, 0.1, 0.0, 0.0)
    4.0
    >>> norm_of_steps(2, 0.1, 0.5, 0.0)
    2.5
    """
    import numpy as np

    # With gradients of one, a step takes (moved, velocity, 1), in units of the learning rate, on;
    # powers, since a client may claim a great many.
    pull = learning_rate * proximal_mu
    step = np.array([[1 - pull, momentum, 1], [-pull, momentum, 1], [0, 0, 1.0]])
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.linalg.matrix_power(step, steps)[0, 2])


class FedNova(Algorithm):
    """Wang et al. 2020 (arXiv 2007.07481), equation 10: normalised averaging.

    w + tau_eff * sum(p_k * update_k / a_k), where p_k is n_k / sum(n), a_k = |a|_1 of the local
    steps, and tau_eff = sum(p_k * a_k). With equal steps it is FedAvg.
    """

    Options = Momentum
    needs_steps = True
    proximal_mu = 0.0

    def check(self) -> None:
        super().check()
        training = self.setting.training
        pull = training.learning_rate * training.proximal_mu
        if pull >= 1:
            raise InputError(
                f"--proximal-mu: --lr times it is {pull:g}, with which local steps overshoot the "
                "global model and FedNova can't count them; keep it below 1"
            )

    def plan(self, cohort: Cohort, measured: Tensor | None, notes: Notes) -> Plan:
        sgd = self.setting.training
        norms = [
            norm_of_steps(one.num_steps, sgd.learning_rate, sgd.momentum, sgd.proximal_mu)
            for one in cohort
        ]
        if not all(0 < norm < math.inf for norm in norms):
            raise CannotAggregate(
                "the local steps that clients claim add up to nothing FedNova knows"
            )
        counts = [one.weight for one in cohort]
        total = sum(counts)
        effective = sum(n * norm for n, norm in zip(counts, norms, strict=True)) / total
        weights = [n * (effective / norm) for n, norm in zip(counts, norms, strict=True)]
        return Plan(cohort, weights, total)

    def mean(self, updates: Sequence[Tensor], plan: Plan) -> Tensor:
        """See `Algorithm.mean`; statistics don't add up with the steps, so they count by n_k."""
        return weighted_mean(updates, [one.weight for one in plan.cohort])
