"""A round without training, against the same bytes through a bare gRPC service.

Real server and client processes. Seconds are from one commit to the next, by the server's own
log, so nothing hides between two rounds.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import NamedTuple

from scripts.benchmarks.figures import Figure
from scripts.benchmarks.processes import Process
from scripts.benchmarks.servers import TASK, serving
from scripts.benchmarks.tasks import SIZES


class Case(NamedTuple):
    """A model by name, the clients, how many rounds are measured, and a process's clients."""

    model: str
    clients: int
    rounds: int
    together: int = 1


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
        server = stack.enter_context(
            serving(
                *("--model", case.model, "--rounds", case.rounds + 1),
                *("--min-clients", case.clients, "--num-partitions", case.clients),
            )
        )
        size = (server.run / "models" / "global.safetensors").stat().st_size
        # Once before and once after: on a machine with neighbours, the quicker one is the floor.
        floors.append(floor_of(size, case.clients, case.rounds))
        anonymous, high_water = (server.process.memory(name) for name in ("RssAnon", "VmHWM"))
        server.process.forget_peak()
        clients = [
            stack.enter_context(_client(server.address, first, first + case.together - 1))
            for first in range(0, case.clients, case.together)
        ]
        seen = server.watch(clients)
        rows = [json.loads(x) for x in (server.run / "metrics.jsonl").read_text().splitlines()]
    floors.append(floor_of(size, case.clients, case.rounds))
    floor, floor_cpu = min(floors)
    seconds = [b.time - a.time for a, b in pairwise(seen.commits)]
    cpu = (seen.commits[-1].cpu_seconds - seen.commits[0].cpu_seconds) / len(seconds)
    yield Figure(name="round", value=statistics.median(seconds), unit="s", floor=floor, sizes=sizes)
    yield Figure(name="round, CPU", value=cpu, unit="s", floor=floor_cpu, sizes=sizes)
    for kind, value in (
        ("RssAnon", seen.anonymous - anonymous),
        ("VmHWM", seen.high_water - high_water),
    ):
        name = f"round, server memory ({kind})"
        yield Figure(name=name, value=value, unit="B", floor=float(size), sizes=sizes)
    for part in ("collect", "aggregate"):
        value = statistics.median(row[f"{part}_seconds"] for row in rows[1:])
        yield Figure(name=f"round, {part}", value=value, unit="s", sizes=sizes)


def _client(address: str, first: int, last: int) -> Process:
    partitions = f"{first}-{last}" if last > first else first
    return Process("client", "--server", address, "--partition", partitions, "--task", TASK)


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
