"""One life of a server that may be killed: it runs a coordinator, with clients that answer at once.

There are no sockets in it. One client can miss its quorum: its upload is half there when the
deadline passes, the attempt is abandoned, and in the next one it reports.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
import torch
from structlog.types import EventDict, WrappedLogger
from torch import nn

from common.errors import RunFailed
from common.tasks import Examples, Task
from common.tensors import digest_bytes, encode, open_mapped
from common.training import Evaluation
from common.transfer import Piece, pieces
from scripts.resilience.kills import Forked, Life, Point, Tell, count_steps
from server import app, configuration
from server.engine.events import DeadlinePassed, Phase
from server.options import (
    CohortOptions,
    EvaluationOptions,
    RunOptions,
    ServerOptions,
    StrategyOptions,
)
from server.run.assignments import Assignment, Work
from server.run.coordinator import Coordinator
from server.run.evaluation import Evaluator
from server.run.results import Results
from server.run.uploads import Announcement, Outcome, PushResult
from server.storage import layout
from server.storage.checkpoints import RunDirectory, export_pth

ROUNDS = frozenset((1, 2))
_CLIENTS = ("a", "b", "c")
_LATE = "c"
_CHUNK_BYTES = 4096


class Linear(Task):
    """A model of two chunks; the data is never looked at."""

    models = {"linear": lambda: nn.Linear(50, 40)}  # noqa: RUF012

    def data(self, data_dir: Path, train: bool) -> Examples:  # noqa: ARG002
        """Return nothing to speak of."""
        return Examples(torch.zeros(4, 50), torch.zeros(4, dtype=torch.long))

    def evaluate(self, model: nn.Module, examples: Examples) -> Evaluation:  # noqa: ARG002
        """Return what has a line in each file of metrics."""
        return Evaluation({"loss": 1.0}, [[4]])


def serve(folder: Path, kill: Point | None, missed: Set[int] = frozenset()) -> Life:
    """Run a server's life in a forked process.

    Args:
        folder: of the run, which it begins or goes on with.
        kill: where it dies; None: at its end.
        missed: the rounds in which an attempt of this life is abandoned.
    """
    return Forked(lambda tell: _serve(folder, kill, missed, tell)).wait()


def recovered(life: Life) -> int:
    """Return how many steps a life took before it served clients."""
    until = next((n for n, event in enumerate(life.told) if "serving" in event), len(life.told))
    return sum("step" in event for event in life.told[:until])


def acknowledged(life: Life) -> set[tuple[int, str]]:
    """Return the round and client of each update that was acknowledged."""
    return {tuple(event["acknowledged"]) for event in life.told if "acknowledged" in event}


def result(folder: Path) -> tuple[Any, ...]:
    """Return what must not depend on kills: models, rows, and which files there are."""
    rows = [json.loads(line) for line in (folder / layout.METRICS).read_text().splitlines()]
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    models = [(row["round"], row["accepted"], row["model_blake3"]) for row in rows]
    table = len((folder / layout.TABLE).read_text().splitlines())
    return models, table, (folder / layout.EVALUATIONS).read_text(), files


def _serve(folder: Path, kill: Point | None, missed: Set[int], tell: Tell) -> int:
    structlog.configure(processors=[_drop])
    count_steps(folder, kill, tell)
    directory = RunDirectory(folder)
    task = Linear()
    options = configuration.resolve(_options(folder, resume=directory.holds_run()), task)
    directory.lock()
    run_id = app.open_run(options, directory)
    evaluator = Evaluator(task, task.models["linear"](), task.data(folder, train=False))

    async def live() -> None:
        coordinator = app.prepare(options, task, directory, run_id, evaluator)
        tell(serving=True)
        acknowledge = lambda *what: tell(acknowledged=what)  # noqa: E731
        await _train(coordinator, not options.run.resume, set(missed), acknowledge)

    asyncio.run(live())
    export_pth(folder / layout.MODELS)
    return 0


def _drop(_: WrappedLogger, __: str, ___: EventDict) -> EventDict:
    raise structlog.DropEvent


def _options(folder: Path, *, resume: bool) -> ServerOptions:
    name, everyone = f"{__name__}:{Linear.__name__}", len(_CLIENTS)
    options = ServerOptions(
        run=RunOptions(rounds=len(ROUNDS), task=name, run_dir=folder, resume=resume),
        cohort=CohortOptions(min_clients=everyone, quorum=everyone),
        strategy=StrategyOptions(strategy="fedavgm", server_momentum=0.5),
        evaluation=EvaluationOptions(keep_rounds=1),
    )
    return replace(options, split=replace(options.split, num_partitions=everyone))


async def _train(
    coordinator: Coordinator,
    begun: bool,
    missed: set[int],
    acknowledge: Callable[[int, str], None],
) -> None:
    # The other way round after a restart: what one left behind, another one finds first.
    names = _CLIENTS if begun else _CLIENTS[::-1]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(coordinator.run())
        for name in names:
            tasks.create_task(_client(coordinator, name, missed, acknowledge))


async def _client(
    coordinator: Coordinator,
    name: str,
    missed: set[int],
    acknowledge: Callable[[int, str], None],
) -> None:
    session = coordinator.sessions.join(name, "life", _CLIENTS.index(name))
    while not coordinator.status.ended:
        assignment = coordinator.assignments.of_client(name)
        if assignment is None:
            await session.wait(30.0)
        elif assignment.work is Work.EVALUATE:
            Results(coordinator).report_evaluation(assignment, 10, {"loss": 1.0})
        else:
            late = name == _LATE and assignment.round in missed
            missed -= {assignment.round} if late else set()
            result = await _push(coordinator, assignment, late)
            if result.outcome is Outcome.ACCEPTED:
                acknowledge(assignment.round, name)
            elif not late:
                told = f"{result.outcome.value}: {result.message}"
                raise RunFailed(f"{name} sent a good update in time and was told {told}")


async def _push(coordinator: Coordinator, assignment: Assignment, late: bool) -> PushResult:
    """Push what this client always would for this model and seed."""
    model = coordinator.offers.model(assignment.model_version)
    generator = torch.Generator().manual_seed(coordinator.offers.seed_of(assignment))
    update = encode(
        {
            name: torch.randn(tensor.shape, generator=generator) - tensor / 10
            for name, tensor in open_mapped(model.path).items()
        }
    )
    announcement = Announcement(
        digest=digest_bytes(update),
        write_offset=0,
        base_version=model.version,
        base_digest=model.digest,
        num_examples=10 + _CLIENTS.index(assignment.client_id),
        scalars={"num_steps": 1},
        metrics={"loss": 1.0},
    )

    async def chunks() -> AsyncIterator[Piece]:
        for piece in pieces(memoryview(update), size=_CHUNK_BYTES):
            if late and piece.last:
                await _let_the_deadline_pass(coordinator, assignment)
            yield piece

    return await Results(coordinator).push(
        assignment.task_token, assignment.client_id, announcement, chunks()
    )


async def _let_the_deadline_pass(coordinator: Coordinator, assignment: Assignment) -> None:
    """Let all others report first, so that as much as can be is left behind."""
    while coordinator.status.view.pending != {assignment.client_id}:
        await coordinator.status.wait_for_change(coordinator.status.revision, 30.0)
    coordinator.apply(DeadlinePassed(assignment.round, assignment.attempt, Phase.REPORTING))
