"""The algorithms, one a module: what clients do beyond local training, how updates are combined.

Pure: tensors in, tensors out. They know nothing about files, networks or rounds; what is outside
of them knows none by its name. Torch is imported where it is needed, so that --help need not wait.
"""

from common.algorithms.base import (
    Algorithm,
    CannotAggregate,
    ClientHalf,
    ClientRound,
    Contribution,
    Momentum,
    Notes,
    Options,
    Plan,
    Setting,
)
from common.algorithms.registry import BUILT_IN, load_algorithm, named_again, option_values

__all__ = [
    "BUILT_IN",
    "Algorithm",
    "CannotAggregate",
    "ClientHalf",
    "ClientRound",
    "Contribution",
    "Momentum",
    "Notes",
    "Options",
    "Plan",
    "Setting",
    "load_algorithm",
    "named_again",
    "option_values",
]
