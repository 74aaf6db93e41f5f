"""Lives of a client that may be killed, while one server serves them all.

Client and server are what their commands run, with a socket between them, in forked processes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from client import app as client
from client.options import ClientOptions
from common.errors import RunFailed
from common.tasks import Examples, Task
from scripts.resilience.kills import Forked, Life, Point, Tell, count_steps, folder_in_memory
from server import app as server
from server.options import (
    CohortOptions,
    EvaluationOptions,
    ProcessOptions,
    RunOptions,
    ServerOptions,
    SplitOptions,
    StrategyOptions,
)
from server.storage import layout

_ROUNDS = 3
_READY_SECONDS = 60.0


class TwoLayers(Task):
    """Of which one stays with each client."""

    models = {  # noqa: RUF012
        "two": lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    }

    def data(self, data_dir: Path, train: bool) -> Examples:  # noqa: ARG002
        """Return random points."""
        generator = torch.Generator().manual_seed(1)
        return Examples(torch.randn(40, 8, generator=generator), torch.arange(40) % 4)


def train(kills: Sequence[Point]) -> tuple[list[Life], tuple[Any, ...]]:
    """Train with a client that dies at a point of its first life, its second and so on.

    Returns:
        its lives, and what must not depend on kills: the server's status, the models, and the
            files that it keeps.

    Raises:
        RunFailed: the server did not start.
    """
    with folder_in_memory() as place:
        run, state = place / "run", place / "state"
        served = Forked(lambda _: _serve(run))
        try:
            lives = _lives(_address(run), state, kills)
            if lives[-1].status:
                served.kill()
        except RunFailed:
            served.kill()
            raise
        finally:
            end = served.wait()
        rows = [json.loads(line) for line in (run / layout.METRICS).read_text().splitlines()]
        kept = {
            str(path.relative_to(state)): path.read_bytes()
            for path in state.rglob("*")
            if path.is_file()
        }
        return lives, (end.status, [row["model_blake3"] for row in rows], kept)


def _lives(address: str, state: Path, kills: Sequence[Point]) -> list[Life]:
    return [
        Forked(lambda tell, kill=kill: _take_part(address, state, kill, tell)).wait()  # type: ignore[misc]
        for kill in [*kills, None]
    ]


def _serve(run: Path) -> int:
    _be_quiet()
    options = ServerOptions(
        run=RunOptions(
            rounds=_ROUNDS,
            task=f"{__name__}:{TwoLayers.__name__}",
            local_layers="^2",
            run_dir=run,
        ),
        split=SplitOptions(num_partitions=1),
        cohort=CohortOptions(min_clients=1),
        strategy=StrategyOptions(strategy="scaffold"),
        evaluation=EvaluationOptions(evaluate_every=0),
        process=ProcessOptions(bind="127.0.0.1:0"),
    )
    return server.serve(options)


def _take_part(address: str, state: Path, kill: Point | None, tell: Tell) -> int:
    _be_quiet()
    count_steps(state, kill, tell)
    return client.serve(
        ClientOptions(
            partition="0",
            server=address,
            task=f"{__name__}:{TwoLayers.__name__}",
            state_dir=state,
            max_wait=_READY_SECONDS,
        )
    )


def _be_quiet() -> None:
    """Write no log to this terminal."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _address(run: Path) -> str:
    until = time.monotonic() + _READY_SECONDS
    ready = run / layout.READY
    while not ready.exists():
        if time.monotonic() > until:
            raise RunFailed("the server does not start")
        time.sleep(0.005)
    return str(json.loads(ready.read_text())["address"])
