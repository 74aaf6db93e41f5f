"""Clients come and go for hundreds of rounds, none twice: what the server holds stays level."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import grpc
from rich.console import Console

from common.errors import RunFailed
from scripts.resilience.vitals import at_rest, growth, table_of
from scripts.testbed.crowd import Client
from scripts.testbed.servers import TASK, Server, serving
from server.storage import layout

_AT_ONCE = 8
_MOST_UPDATES = 5
_VANISHING_SHARE = 0.25
_FLAGS = (
    *("--model", "10k", "--rounds", 1_000_000, "--max-attempts", 1_000_000),
    *("--num-partitions", 1_000_000, "--min-clients", 4),
    # Half of the updates are enough, so that nobody waits for those who vanished.
    *("--fraction", 0.5, "--over-select", 2, "--lease", 1),
)


def run(rounds: int, as_json: bool) -> None:
    """Let clients come and go, and print what the server holds early on and at the end.

    Raises:
        RunFailed: the server holds more than before.
    """
    with serving(*_FLAGS) as server:
        numbers = count()
        asyncio.run(_come_and_go(server, rounds // 10, numbers))
        before, began = at_rest(server.process), time.monotonic()
        asyncio.run(_come_and_go(server, rounds, numbers))
        seconds, after = time.monotonic() - began, at_rest(server.process)
    clients = next(numbers)
    grown = growth(before, after)
    if as_json:
        figures = {"rounds": rounds, "clients": clients, "seconds": round(seconds, 1)}
        levels = {"before": before._asdict(), "after": after._asdict(), "problems": len(grown)}
        print(json.dumps(figures | levels), flush=True)
    else:
        console = Console()
        console.print(table_of(before, after))
        console.print(f"{rounds} rounds, {clients} clients, {seconds:.0f} s after the warm-up")
    if grown:
        raise RunFailed("; ".join(grown))


async def _come_and_go(server: Server, rounds: int, numbers: Iterator[int]) -> None:
    """Keep a few clients in the run until so many rounds are committed; then nobody is left."""

    async def take_turns() -> None:
        while True:
            await _take_part(server.address, next(numbers))

    turns = [asyncio.create_task(take_turns()) for _ in range(_AT_ONCE)]
    try:
        while _committed(server.run) < rounds:
            if server.process.ended:
                log = (server.run.parent / "server.log").read_text()
                raise RunFailed(f"the server has ended: {log.splitlines()[-1]:.500}")
            for turn in turns:
                if turn.done():
                    raise RunFailed(f"a client failed: {turn.exception()!r}")
            await asyncio.sleep(0.05)
    finally:
        for turn in turns:
            turn.cancel()
        await asyncio.gather(*turns, return_exceptions=True)


async def _take_part(address: str, number: int) -> None:
    rng = random.Random(number)
    client = Client(address, number, TASK)
    try:
        await client.join(asyncio.Semaphore())
        with suppress(grpc.aio.AioRpcError):  # The run has moved on while it worked.
            await client.poll(rng.randint(1, _MOST_UPDATES))
        if rng.random() > _VANISHING_SHARE:
            await client.leave()
    finally:
        await client.vanish()


def _committed(run: Path) -> int:
    metrics = run / layout.METRICS
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0
