"""What is done to a training, and when: a pure function of a seed.

A fault waits for progress of the run, not for a time. Knows no process, clock or socket.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from enum import Enum
from itertools import chain

from scripts.testbed.proxy import Way

CLIENTS = 3
# Where attempts are to be abandoned, in seconds: what a cohort has, and what it is paused for.
SHORT_DEADLINE, STALL_SECONDS = 4.0, 6.0
_MEBIBYTE = 1 << 20


class Kind(Enum):
    """What happens; all but the first and the last two to one client."""

    KILL_SERVER = "server killed"
    KILL_CLIENT = "client killed"
    PAUSE = "client paused"
    CUT = "connection cut"
    CORRUPT = "byte corrupted"
    RESET = "connections reset"
    HALF_OPEN = "connections half-open"
    DELAY = "connections delayed"
    STALL = "all clients but one paused"
    CALM = "all faults end"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How much is done: first rounds in which the server is killed, then the last server's life.

    That is a round in which all faults end, a quiet one to compare with, some under fire, and a
    quiet end.

    Attributes:
        server_kills: one a round, from the first one on.
        client_kill_rounds: not more than there must be, since a process takes seconds to start.
        last_faulty_rounds: in the last server's life.
        client_faults: at least so many must hit.
    """

    server_kills: int
    client_kill_rounds: tuple[int, ...]
    last_faulty_rounds: int
    client_faults: int

    @property
    def calm_round(self) -> int:
        """The round in which the faults of before end."""
        return self.server_kills + 1

    @property
    def quiet_round(self) -> int:
        """The round after which the last server's levels are taken first."""
        return self.calm_round + 1

    @property
    def faulty_rounds(self) -> tuple[int, ...]:
        """The rounds in which something happens to the clients."""
        late = range(self.quiet_round + 1, self.quiet_round + 1 + self.last_faulty_rounds)
        return (*range(1, self.calm_round), *late)

    @property
    def rounds(self) -> int:
        """All rounds: one for the last faults to end in, and a quiet one."""
        return self.faulty_rounds[-1] + 2


def abandons(seed: int) -> bool:
    """Say whether attempts of a seed's training miss their quorum, in every other one."""
    return seed % 2 == 1


FULL = Shape(server_kills=5, client_kill_rounds=(1, 4, 9), last_faulty_rounds=2, client_faults=20)
SMALL = Shape(server_kills=1, client_kill_rounds=(1,), last_faulty_rounds=1, client_faults=5)


@dataclass(frozen=True)
class Fault:
    """One fault, due `after` seconds after `round` has `accepted` updates.

    Attributes:
        way, count: of CUT and CORRUPT: the direction, and the bytes that pass before.
        client: of STALL: who is not paused.
        seconds: how long PAUSE, STALL, HALF_OPEN and DELAY last.
    """

    round: int
    accepted: int
    after: float
    kind: Kind
    client: int = 0
    way: Way = "up"
    count: int = 0
    seconds: float = 0.0


def plan(seed: int, shape: Shape) -> list[Fault]:
    """Return the faults of a seed, in their order."""
    draw = random.Random(seed)
    kinds = [kind for kind in Kind if kind not in _NOT_DEALT]
    # Each kind as often as the others, two ways for those that have a way.
    deck = list(chain.from_iterable(draw.sample(kinds, len(kinds)) for _ in range(4)))
    faults = []
    for number in shape.faulty_rounds:
        here = sorted(
            (_client_fault(draw, number, deck.pop()) for _ in range(3)),
            key=lambda fault: fault.accepted,
        )
        accepted = draw.randrange(CLIENTS + 1)
        after = round(draw.uniform(0, 0.3), 3)
        if number in shape.client_kill_rounds:
            client = draw.randrange(CLIENTS)
            here.append(Fault(number, accepted, after, Kind.KILL_CLIENT, client))
        if number <= shape.server_kills:
            here.append(Fault(number, accepted, after, Kind.KILL_SERVER))
        faults += here
    if abandons(seed):
        # A shorter pause of the same client would end the stall with it.
        faults = [
            replace(fault, kind=Kind.RESET)
            if (fault.round, fault.kind) == (shape.quiet_round + 1, Kind.PAUSE)
            else fault
            for fault in faults
        ]
        for number in (shape.faulty_rounds[0], shape.quiet_round + 1):
            one = draw.randrange(CLIENTS)
            faults.insert(0, Fault(number, 0, 0.0, Kind.STALL, one, seconds=STALL_SECONDS))
    faults.append(Fault(shape.calm_round, 0, 0.0, Kind.CALM))
    faults.append(Fault(shape.faulty_rounds[-1] + 1, 0, 0.0, Kind.CALM))
    return sorted(faults, key=lambda fault: fault.round)


_NOT_DEALT = (Kind.KILL_SERVER, Kind.KILL_CLIENT, Kind.STALL, Kind.CALM)


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
