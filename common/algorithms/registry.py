"""Finds an algorithm by its name: a built-in one, or `package.module:Class`; reads its options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, get_type_hints

from cyclopts import App, CycloptsError

from common.algorithms.base import Algorithm
from common.algorithms.optimizers import Options
from common.errors import InputError
from common.loading import load

BUILT_IN = {
    "fedavg": "common.algorithms.fedavg:FedAvg",
    "fedavgm": "common.algorithms.fedavg:FedAvgM",
    "fedadagrad": "common.algorithms.fedavg:FedAdagrad",
    "fedadam": "common.algorithms.fedavg:FedAdam",
    "fedyogi": "common.algorithms.fedavg:FedYogi",
    "fedprox": "common.algorithms.fedavg:FedProx",
    "scaffold": "common.algorithms.scaffold:Scaffold",
    "fednova": "common.algorithms.fednova:FedNova",
    "median": "common.algorithms.median:Median",
    "trimmed-mean": "common.algorithms.trimmed_mean:TrimmedMean",
    "multi-krum": "common.algorithms.multi_krum:MultiKrum",
    "norm-bounding": "common.algorithms.norm_bounding:NormBounding",
}


def load_algorithm(name: str) -> type[Algorithm]:
    """Import and return an algorithm's class.

    Raises:
        InputError: there is none of that name; the message says what was looked for.
    """
    found = load("--strategy", name, BUILT_IN)
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise InputError(
            f"--strategy: {name!r} is no class derived from common.algorithms.Algorithm"
        )
    return found


def named_again(name: str) -> str:
    """Return what a command that goes on with a run says of its strategy, after a space.

    >>> named_again("fedavg"), named_again("mine:Mine")
    ('', ' --strategy mine:Mine')
    """
    return "" if name in BUILT_IN else f" --strategy {name}"


def flags() -> dict[str, Any]:
    """Return the type of each option of the built-in algorithms, with its bounds and its help."""
    found: dict[str, Any] = {}
    for name in BUILT_IN:
        # The class that declares an option says what it is; others change its default.
        for kind in reversed(load_algorithm(name).Options.__mro__[:-1]):
            for option, hint in _hints(kind).items():
                found.setdefault(option, hint)
    return found


def _hints(kind: type[Options]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def option_values(
    name: str, given: Mapping[str, Any], proximal_mu: float | None, own: Mapping[str, Any]
) -> Options:
    """Return an algorithm's options, each as it is given or else by its default.

    Args:
        name: of the algorithm.
        given: the values of the flags by the options' names; None is not given, and 0 as good as
            not given where the algorithm has no such option.
        proximal_mu: the value of --proximal-mu, in the same way.
        own: those of --strategy-options.

    Raises:
        InputError: an option is given that the algorithm does not have, or has another type.
    """
    algorithm = load_algorithm(name)
    hints = _hints(algorithm.Options)
    taken = hints.keys()
    if proximal_mu and algorithm.proximal_mu is None:
        raise _not_taken("proximal_mu", name)
    for option, value in given.items():
        if value and option not in taken:
            raise _not_taken(option, name)
    values = {k: v for k, v in given.items() if k in taken and v is not None}
    for option in own.keys() & given.keys():
        raise InputError(f"--strategy-options: {option} has a flag of its own; use {_flag(option)}")
    read = _read(algorithm.Options, own)
    return replace(read, **values)


def _read(kind: type[Options], own: Mapping[str, Any]) -> Options:
    """Return options of which some are values of JSON, checked as flags are."""
    app = App(result_action="return_value")
    app.default(kind)
    values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in own.items()}
    words = [f"{_flag(option)}={value}" for option, value in values.items()]
    try:
        read: Options = app(words, exit_on_error=False, print_error=False, help_on_error=False)
    except CycloptsError as error:
        raise InputError(f"--strategy-options: {' '.join(str(error).split())}") from error
    return read


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _not_taken(option: str, name: str) -> InputError:
    others = (
        other
        for other in BUILT_IN
        if option in _hints(load_algorithm(other).Options)
        or (option == "proximal_mu" and load_algorithm(other).proximal_mu is not None)
    )
    return InputError(
        f"{_flag(option)} is not an option of --strategy {name}; it applies to {', '.join(others)}"
    )
