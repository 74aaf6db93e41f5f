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
    Plan,
    Setting,
)
from common.algorithms.optimizers import Momentum, Options
from common.algorithms.registry import BUILT_IN, load_algorithm

__all__ = [
    "BUILT_IN",
    "Algorithm",
    "CannotAggregate",
    "ClientHalf",
    "ClientRound",
    "Contribution",
    "Momentum",
    "Options",
    "Plan",
    "Setting",
    "load_algorithm",
]
