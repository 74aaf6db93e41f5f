"""FedAvg: the mean of the updates, weighted by their examples; FedAvgM and FedProx beside it."""

from __future__ import annotations

from dataclasses import dataclass

from common.algorithms.base import Algorithm, Momentum
from common.option_types import BelowOne


class FedAvg(Algorithm):
    """McMahan et al. 2017 (arXiv 1602.05629), algorithm 1: w + sum(n_k * update_k) / sum(n_k)."""


@dataclass(frozen=True, kw_only=True)
class FedAvgMOptions(Momentum):
    """FedAvgM's options."""

    server_momentum: BelowOne = 0.9


class FedAvgM(Algorithm):
    """FedAvg with momentum: Hsu, Qi and Brown 2019 (arXiv 1909.06335), section 4."""

    takes = FedAvgMOptions


class FedProx(Algorithm):
    """Li et al. 2020 (arXiv 1812.06127), algorithm 2: FedAvg whose clients' loss has a pull.

    The proximal term is a part of local training (`common.training.train`).
    """

    takes = Momentum
    proximal_mu = 0.01
