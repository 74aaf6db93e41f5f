"""How long the commands take to begin, against the imports that they can't do without."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from scripts.benchmarks.measurements import Figure
from scripts.testbed.servers import client_of, serving

_PYTHON, _IMPORTS = "pass", "import torch, grpc"
_TINY = ("--model", "10k", "--min-clients", 2, "--num-partitions", 2)
_LOOK_SECONDS = 0.005


def measure(small: bool) -> Iterator[Figure]:
    """Yield the median seconds of each command; a server starts only once if `small`."""
    for program in ("server", "client"):
        # In turn, so that neighbours weigh on both alike.
        pairs = ((_run("-m", program, "--help"), _run("-c", _PYTHON)) for _ in range(5))
        values, python = zip(*pairs, strict=True)
        yield _figure(f"{program} --help", values, python)
    count = 1 if small else 5
    imports = [_run("-c", _IMPORTS) for _ in range(count)]
    listening, joined = zip(*(_start() for _ in range(count)), strict=True)
    yield _figure("server, start to listening", listening, imports)
    yield _figure("client, start to joined", joined, imports)


def _figure(name: str, values: Sequence[float], floors: Sequence[float]) -> Figure:
    value, floor = statistics.median(values), statistics.median(floors)
    return Figure(name=name, value=value, unit="s", floor=floor)


def _run(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _start() -> tuple[float, float]:
    """Return the seconds until a server listens, and until a client has then joined it."""
    began = time.perf_counter()
    with serving(*_TINY) as server:
        listening = time.perf_counter() - began
        began = time.perf_counter()
        with client_of(server.address, 0) as client:
            while not server.events("client joined"):
                if client.ended:
                    client.wait()
                time.sleep(_LOOK_SECONDS)
            return listening, time.perf_counter() - began
