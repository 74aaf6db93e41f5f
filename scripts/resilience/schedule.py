"""What is done to a training, and when: a pure function of a seed.

A fault waits for progress of the run, not for a time. Knows no process, clock or socket.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum
from itertools import chain

from scripts.resilience.proxy import Way

CLIENTS = 3
# The last server's life: a quiet round to compare with, two under fire, and a quiet end.
_KILL_ROUNDS = range(1, 6)
_CALM_ROUND = 6
QUIET_ROUND = 7
_FAULTY_ROUNDS = (8, 9)
# A process takes seconds to start: not more of them than there must be.
_CLIENT_KILL_ROUNDS = (1, 4, 8)
ROUNDS = 11
_MEBIBYTE = 1 << 20


class Kind(Enum):
    """What happens; all but the first and the last to one client."""

    KILL_SERVER = "server killed"
    KILL_CLIENT = "client killed"
    PAUSE = "client paused"
    CUT = "connection cut"
    CORRUPT = "byte corrupted"
    RESET = "connections reset"
    HALF_OPEN = "connections half-open"
    DELAY = "connections delayed"
    CALM = "all faults end"


@dataclass(frozen=True)
class Fault:
    """One fault, due `after` seconds after `round` has `accepted` updates.

    Attributes:
        way, count: of CUT and CORRUPT: the direction, and the bytes that pass before.
        seconds: how long PAUSE, HALF_OPEN and DELAY last.
    """

    round: int
    accepted: int
    after: float
    kind: Kind
    client: int = 0
    way: Way = "up"
    count: int = 0
    seconds: float = 0.0


def plan(seed: int) -> list[Fault]:
    """Return the faults of a seed, in their order."""
    draw = random.Random(seed)
    kinds = [kind for kind in Kind if kind not in _NOT_DEALT]
    # Each kind as often as the others, two ways for those that have a way.
    deck = list(chain.from_iterable(draw.sample(kinds, len(kinds)) for _ in range(4)))
    faults = []
    for number in (*_KILL_ROUNDS, *_FAULTY_ROUNDS):
        here = sorted(
            (_client_fault(draw, number, deck.pop()) for _ in range(3)),
            key=lambda fault: fault.accepted,
        )
        accepted = draw.randrange(CLIENTS + 1)
        after = round(draw.uniform(0, 0.3), 3)
        if number in _CLIENT_KILL_ROUNDS:
            client = draw.randrange(CLIENTS)
            here.append(Fault(number, accepted, after, Kind.KILL_CLIENT, client))
        if number in _KILL_ROUNDS:
            here.append(Fault(number, accepted, after, Kind.KILL_SERVER))
        faults += here
    faults.append(Fault(_CALM_ROUND, 0, 0.0, Kind.CALM))
    faults.append(Fault(_FAULTY_ROUNDS[-1] + 1, 0, 0.0, Kind.CALM))
    return sorted(faults, key=lambda fault: fault.round)


_NOT_DEALT = (Kind.KILL_SERVER, Kind.KILL_CLIENT, Kind.CALM)


def _client_fault(draw: random.Random, number: int, kind: Kind) -> Fault:
    return Fault(
        number,
        draw.randrange(CLIENTS - 1),
        round(draw.uniform(0, 0.3), 3),
        kind,
        draw.randrange(CLIENTS),
        draw.choice(("up", "down")),
        # Within the model's 4 MiB, past the headers: their bytes have no digest.
        draw.randrange(_MEBIBYTE // 4, 3 * _MEBIBYTE),
        round(draw.uniform(0.2, 1.2), 3),
    )
