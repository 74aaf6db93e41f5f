"""Thousands of clients that wait, and a hundred of them at work: memory, time, CPU, losses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

from scripts.benchmarks.measurements import Figure
from scripts.testbed.processes import Process
from scripts.testbed.servers import TASK, serving

_PROCESSES = 4
_MODEL = "10k"


class Case(NamedTuple):
    """Waiting clients, how many a round selects, and how many rounds are measured."""

    clients: int
    cohort: int
    rounds: int


_FULL = [Case(1000, 100, 10), Case(5000, 100, 10)]
_SMALL = [Case(200, 50, 5)]


def measure(small: bool) -> Iterator[Figure]:
    """Yield the figures of each case; of a single one, measured within 30 seconds, if `small`."""
    for case in _SMALL if small else _FULL:
        yield from _measure(case)


def _measure(case: Case) -> Iterator[Figure]:
    sizes = {"clients": case.clients, "cohort": case.cohort}
    # The last client lets the rounds begin, once the others' waiting has been measured.
    total = case.clients + 1
    with ExitStack() as stack:
        server = stack.enter_context(
            serving(
                *("--model", _MODEL, "--rounds", case.rounds + 1, "--num-partitions", total),
                *("--min-clients", total, "--fraction", case.cohort / total),
            )
        )
        rest = server.process.memory("RssAnon")
        each = case.clients // _PROCESSES
        crowds = [
            stack.enter_context(_crowd(server.address, index * each, each))
            for index in range(_PROCESSES)
        ]
        for crowd in crowds:
            crowd.hear()
        waiting = (server.process.memory("RssAnon") - rest) / (each * _PROCESSES)
        crowds.append(stack.enter_context(_crowd(server.address, case.clients, 1)))
        seen = server.watch(crowds)
        lost = len(server.events("client lost"))
        again = len(server.events("client joined")) - (each * _PROCESSES + 1)
    yield Figure(name="memory of a waiting client", value=waiting, unit="B", sizes=sizes)
    yield Figure(name="round of a crowd", value=seen.round_seconds, unit="s", sizes=sizes)
    yield Figure(name="round of a crowd, CPU", value=seen.round_cpu_seconds, unit="s", sizes=sizes)
    yield Figure(name="sessions lost", value=float(lost + again), unit="", sizes=sizes)


def _crowd(address: str, first: int, count: int) -> Process:
    return Process("scripts.testbed.crowd", address, first, count, TASK)
