"""Builds a strategy from its name and its options."""

from common.training import TrainConfig
from server.aggregation.optimizers import Adaptive, Optimizer, SecondMoment, Sgd
from server.aggregation.strategies.base import Strategy
from server.aggregation.strategies.fedavg import FedAvg
from server.aggregation.strategies.fednova import FedNova
from server.aggregation.strategies.median import Median
from server.aggregation.strategies.multi_krum import MultiKrum
from server.aggregation.strategies.norm_bounding import NormBounding
from server.aggregation.strategies.scaffold import Scaffold
from server.aggregation.strategies.trimmed_mean import TrimmedMean
from server.options import StrategyOptions


def build(options: StrategyOptions, training: TrainConfig, num_clients: int) -> Strategy:
    """Return the strategy that resolved options ask for.

    Args:
        options: with the strategy's defaults in place.
        training: of the clients.
        num_clients: of the whole federation.
    """
    rate, momentum = options.server_lr or 0.0, options.server_momentum or 0.0
    optimizer: Optimizer = Sgd(rate, momentum)
    match options.strategy:
        case "fedadagrad" | "fedadam" | "fedyogi":
            optimizer = Adaptive(
                kind=SecondMoment(options.strategy),
                learning_rate=rate,
                beta1=momentum,
                beta2=options.server_beta2 or 0.0,
                tau=options.server_tau or 0.0,
            )
            return FedAvg(optimizer)
        case "scaffold":
            return Scaffold(optimizer, training.learning_rate, num_clients)
        case "fednova":
            lr, mu = training.learning_rate, training.proximal_mu
            return FedNova(optimizer, lr, training.momentum, mu)
        case "median":
            return Median(optimizer)
        case "trimmed-mean":
            return TrimmedMean(optimizer, options.trim_fraction or 0.0)
        case "multi-krum":
            return MultiKrum(optimizer, options.num_hostile)
        case "norm-bounding":
            return NormBounding(optimizer, options.norm_bound or 0.0)
        case _:
            return FedAvg(optimizer)
