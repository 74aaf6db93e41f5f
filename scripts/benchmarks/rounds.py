"""A round without training, against the same bytes through a bare gRPC service.

Real server and client processes. Seconds are from one commit to the next, by the server's own
log, so nothing hides between two rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

from scripts.benchmarks.measurements import Figure
from scripts.testbed.processes import Process
from scripts.testbed.servers import client_of, serving
from scripts.testbed.tasks import SIZES


class Case(NamedTuple):
    """A model by name, the clients, how many rounds are measured, and a process's clients."""

    model: str
    clients: int
    rounds: int
    together: int = 1

    @property
    def server_flags(self) -> tuple[object, ...]:
        """A first round that is not measured, and then those that are."""
        counts = ("--min-clients", self.clients, "--num-partitions", self.clients)
        return ("--model", self.model, "--rounds", self.rounds + 1, *counts)

    @property
    def held(self) -> list[str]:
        """The partitions of each client process."""
        firsts = range(0, self.clients, self.together)
        return [f"{first}-{first + self.together - 1}" for first in firsts]


_FULL = [
    Case("1.66M", 10, 20),
    Case("1.66M", 2, 20),
    Case("25M", 2, 10),
    Case("100M", 2, 5),
    Case("25M", 50, 2, together=10),
    Case("250M", 4, 3),
]
_SMALL = [Case("1.66M", 2, 10)]


def measure(small: bool) -> Iterator[Figure]:
    """Yield the figures of each case; of a single one, measured within 30 seconds, if `small`."""
    for case in _SMALL if small else _FULL:
        yield from _measure(case)


def _measure(case: Case) -> Iterator[Figure]:
    sizes = {"parameters": SIZES[case.model], "clients": case.clients}
    floors = []
    with ExitStack() as stack:
        server = stack.enter_context(serving(*case.server_flags))
        size = server.model_size
        # Once before and once after: on a machine with neighbours, the quicker one is the floor.
        floors.append(floor_of(size, case.clients, case.rounds))
        anonymous, high_water = (server.process.memory(name) for name in ("RssAnon", "VmHWM"))
        server.process.forget_peak()
        clients = [stack.enter_context(client_of(server.address, held)) for held in case.held]
        seen = server.watch(clients)
        parts = {part: server.median(f"{part}_seconds") for part in ("collect", "aggregate")}
    floors.append(floor_of(size, case.clients, case.rounds))
    floor, floor_cpu = min(floors)
    cpu = seen.round_cpu_seconds
    yield Figure(name="round", value=seen.round_seconds, unit="s", floor=floor, sizes=sizes)
    yield Figure(name="round, CPU", value=cpu, unit="s", floor=floor_cpu, sizes=sizes)
    for kind, grown in (
        ("RssAnon", seen.anonymous - anonymous),
        ("VmHWM", seen.high_water - high_water),
    ):
        name = f"round, server memory ({kind})"
        yield Figure(name=name, value=grown, unit="B", floor=size, sizes=sizes)
    for part, value in parts.items():
        yield Figure(name=f"round, {part}", value=value, unit="s", sizes=sizes)


def floor_of(size: int, clients: int, rounds: int) -> tuple[float, float]:
    """Return the median seconds, and the mean CPU seconds, of moving the bytes bare."""
    with ExitStack() as stack:
        server = stack.enter_context(Process("scripts.benchmarks.floor", "serve", size))
        address = server.hear()
        takers = [
            stack.enter_context(Process("scripts.benchmarks.floor", "take", address))
            for _ in range(clients)
        ]
        for taker in takers:
            taker.hear()
        processes = [server, *takers]
        marks = [_bare_round(takers, processes) for _ in range(rounds + 1)]
    seconds, cpu = zip(*marks[1:], strict=True)
    return statistics.median(seconds), statistics.mean(cpu)


def _bare_round(takers: list[Process], processes: list[Process]) -> tuple[float, float]:
    """Return the seconds and the CPU seconds of one pull and push by all."""
    began, cpu = time.monotonic(), sum(process.cpu_seconds() for process in processes)
    for taker in takers:
        taker.tell("go")
    for taker in takers:
        taker.hear()
    seconds = time.monotonic() - began
    return seconds, sum(process.cpu_seconds() for process in processes) - cpu
