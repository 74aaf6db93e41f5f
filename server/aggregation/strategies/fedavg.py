"""FedAvg: the mean of the updates, weighted by their examples."""

from server.aggregation.strategies.base import Strategy


class FedAvg(Strategy):
    """McMahan et al. 2017 (arXiv 1602.05629), algorithm 1: w + sum(n_k * update_k) / sum(n_k).

    With `optimizers.Sgd`'s momentum it is FedAvgM, with `optimizers.Adaptive` FedAdagrad, FedAdam
    or FedYogi; where the clients' loss has a proximal term it is FedProx (Li et al. 2020,
    arXiv 1812.06127, algorithm 2), whose server does the same.
    """
