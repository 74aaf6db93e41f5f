"""What each strategy takes of the options, its own defaults, and what makes no sense with it.

Knows the strategies by name only, so that --help and wrong flags need not wait for torch.
"""

from collections.abc import Mapping

from common.errors import InputError
from common.training import TrainConfig

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
# Those that bound by themselves what a long update does.
_BOUNDED = ("multi-krum", "norm-bounding")
# Honest updates stay far below; measured over this project's experiments.
_MAX_NORM_RATIO = 100.0
# Those for which local steps count.
_BY_STEPS = ("scaffold", "fednova")


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


def resolve_norm_ratio(strategy: str, given: float | None) -> float:
    """Return how many medians long an update may be; 0 is any length.

    Raises:
        InputError: it makes no sense, by itself or with the strategy.
    """
    bounded = strategy in _BOUNDED
    if given and bounded:
        raise InputError(
            f"--max-norm-ratio: --strategy {strategy} bounds by itself what a long update does, "
            "and counts on all of them; leave it out"
        )
    if given and given < 1:
        raise InputError(
            f"--max-norm-ratio: {given:g} leaves out the median itself; use 1 or more, or 0 to "
            "leave out none"
        )
    if given is not None:
        return given
    return 0.0 if bounded else _MAX_NORM_RATIO


def check(
    strategy: str, values: Values, training: TrainConfig, max_share: float, wanted: int
) -> None:
    """Refuse what makes no sense with a strategy.

    Args:
        strategy: its name.
        values: as `resolve` returned them.
        training: of the clients, except FedProx's mu, which is among the values.
        max_share: of the mean that one client may have.
        wanted: the updates that a round wants at most.

    Raises:
        InputError: names the flag and the reason.
    """
    if strategy == "scaffold" and training.momentum:
        raise InputError(
            f"--momentum: {training.momentum} does not go with --strategy scaffold, whose control "
            "variates are the gradients of plain SGD; use --momentum 0"
        )
    if strategy in _UNWEIGHTED and max_share < 1:
        raise InputError(
            f"--max-share: with --strategy {strategy} all updates count alike; leave it out"
        )
    if strategy in _BY_STEPS and max_share < 1:
        raise InputError(
            f"--max-share: --strategy {strategy} also counts the steps that clients claim, which "
            "no share bounds; leave it out, or use another strategy"
        )
    pull = training.learning_rate * (values["proximal_mu"] or 0.0)
    if strategy == "fednova" and pull >= 1:
        raise InputError(
            f"--proximal-mu: --lr times it is {pull:g}, with which local steps overshoot the "
            "global model and FedNova can't count them; keep it below 1"
        )
    needed = 2 * int(values["num_hostile"] or 0) + 3
    if strategy == "multi-krum" and wanted < needed:
        raise InputError(
            f"--strategy: multi-krum needs {needed} updates (2 * --num-hostile + 3), and a round "
            f"wants {wanted}; raise --fraction or --report-goal, or have more clients"
        )
