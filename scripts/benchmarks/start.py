"""How long the commands take to begin, against the imports that they can't do without."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

from scripts.benchmarks.figures import Figure
from scripts.benchmarks.processes import Process
from scripts.benchmarks.servers import TASK, serving

_PYTHON, _IMPORTS = "pass", "import torch, grpc"
_TINY = ("--model", "10k", "--min-clients", 2, "--num-partitions", 2)
_LOOK_SECONDS = 0.005


def measure(small: bool) -> Iterator[Figure]:
    """Yield the seconds of each command; the median of several times, unless `small`."""
    count = 1 if small else 5
    for program in ("server", "client"):
        help_of = partial(_run, "-m", program, "--help")
        yield _figure(f"{program} --help", count, help_of, _PYTHON)
    yield _figure("server, start to listening", count, _listen, _IMPORTS)
    yield _figure("client, start to joined", count, _join, _IMPORTS)


def _figure(name: str, count: int, run: Callable[[], float], floor: str) -> Figure:
    values, floors = [], []
    for _ in range(count):
        floors.append(_run("-c", floor))
        values.append(run())
    floor_seconds = statistics.median(floors)
    return Figure(name=name, value=statistics.median(values), unit="s", floor=floor_seconds)


def _run(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _listen() -> float:
    began = time.perf_counter()
    with serving(*_TINY):
        return time.perf_counter() - began


def _join() -> float:
    with serving(*_TINY) as server:
        began = time.perf_counter()
        with Process("client", "--server", server.address, "--partition", 0, "--task", TASK) as it:
            while not server.events("client joined"):
                if it.ended:
                    it.wait()
                time.sleep(_LOOK_SECONDS)
            return time.perf_counter() - began
