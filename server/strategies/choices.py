"""What each strategy takes of the options, its own defaults, and what makes no sense with it.

Knows the strategies by name only, so that --help and wrong flags need not wait for torch.
"""

from collections.abc import Mapping

from common.errors import InputError

Values = Mapping[str, float | int | None]

_SGD: Values = {"server_lr": 1.0, "server_momentum": 0.0}
_ADAPTIVE: Values = {"server_lr": 0.01, "server_momentum": 0.9, "server_tau": 1e-3}
# The options that each takes, with their defaults.
_TAKEN: Mapping[str, Values] = {
    "fedavg": {"server_lr": 1.0},
    "fedavgm": {"server_lr": 1.0, "server_momentum": 0.9},
    "fedadagrad": {**_ADAPTIVE, "server_lr": 0.1, "server_momentum": 0.0},
    "fedadam": {**_ADAPTIVE, "server_beta2": 0.99},
    "fedyogi": {**_ADAPTIVE, "server_beta2": 0.99},
    "fedprox": {**_SGD, "proximal_mu": 0.01},
    "scaffold": {"server_lr": 1.0},
    "fednova": {**_SGD, "proximal_mu": 0.0},
    "median": _SGD,
    "trimmed-mean": {**_SGD, "trim_fraction": 0.2},
    "multi-krum": {**_SGD, "num_hostile": None},
    "norm-bounding": {**_SGD, "norm_bound": None},
}
# Those for which all updates count alike.
_UNWEIGHTED = ("median", "trimmed-mean", "multi-krum")


def resolve(strategy: str, given: Values) -> dict[str, float | int | None]:
    """Return each option's value, where it was not given the strategy's own.

    Args:
        strategy: its name.
        given: by option; None was not given. 0 is as good as nothing.

    Raises:
        InputError: an option is given that the strategy does not take, or one is missing.
    """
    taken = _TAKEN[strategy]
    for name, value in given.items():
        if value and name not in taken:
            others = ", ".join(other for other, options in _TAKEN.items() if name in options)
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag}: --strategy {strategy} has none; it is for {others}")
    found = {name: taken.get(name) if value is None else value for name, value in given.items()}
    if strategy == "norm-bounding" and found["norm_bound"] is None:
        raise InputError(
            "--norm-bound: --strategy norm-bounding needs the L2 norm that updates are scaled "
            "down to, e.g. --norm-bound 1.0"
        )
    return found


def check(
    strategy: str, values: Values, momentum: float, max_share: float, num_clients: int
) -> None:
    """Refuse what makes no sense with a strategy.

    Args:
        strategy: its name.
        values: as `resolve` returned them.
        momentum: of the clients' SGD.
        max_share: of the mean that one client may have.
        num_clients: that there will be at most.

    Raises:
        InputError: names the flag and the reason.
    """
    if strategy == "scaffold" and momentum:
        raise InputError(
            f"--momentum: {momentum} does not go with --strategy scaffold, whose control variates "
            "are the gradients of plain SGD; use --momentum 0"
        )
    if strategy in _UNWEIGHTED and max_share < 1:
        raise InputError(
            f"--max-share: with --strategy {strategy} all updates count alike; leave it out"
        )
    needed = 2 * int(values.get("num_hostile") or 0) + 3
    if strategy == "multi-krum" and num_clients < needed:
        raise InputError(
            f"--strategy: multi-krum needs {needed} updates (2 * --num-hostile + 3), and there "
            f"are {num_clients} clients (--num-partitions)"
        )
