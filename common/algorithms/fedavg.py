"""FedAvg: the mean of the updates, weighted by their examples; and other steps along it."""

from dataclasses import dataclass

from common.algorithms.base import Algorithm
from common.algorithms.optimizers import Adagrad, Adam, Momentum, Yogi
from common.option_types import BelowOne


class FedAvg(Algorithm):
    """McMahan et al. 2017 (arXiv 1602.05629), algorithm 1: w + sum(n_k * update_k) / sum(n_k)."""


class FedAvgM(Algorithm):
    """Hsu, Qi and Brown 2019 (arXiv 1909.06335), section 4: with momentum on the server."""

    @dataclass(frozen=True, kw_only=True)
    class Options(Momentum):
        server_momentum: BelowOne = 0.9


class FedProx(Algorithm):
    """Li et al. 2020 (arXiv 1812.06127), algorithm 2: the clients' loss has a proximal term.

    That is a part of local training (`common.training.train`).
    """

    Options = Momentum
    proximal_mu = 0.01


class FedAdagrad(Algorithm):
    """Reddi et al. 2021 (arXiv 2003.00295), algorithm 2."""

    Options = Adagrad


class FedAdam(Algorithm):
    """Reddi et al. 2021 (arXiv 2003.00295), algorithm 2."""

    Options = Adam


class FedYogi(Algorithm):
    """Reddi et al. 2021 (arXiv 2003.00295), algorithm 2."""

    Options = Yogi
