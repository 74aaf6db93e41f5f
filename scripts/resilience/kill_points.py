"""A server that is killed at each of its writes, and started again.

One life runs the coordinator, with clients that answer at once, in a forked process without
gRPC. Each system call that changes the run directory is a step; before each one, and in the
middle of each write, a life is ended by SIGKILL, and the next one must end as if it had not been.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import structlog
import torch
from rich.console import Console
from rich.table import Table
from structlog.types import EventDict, WrappedLogger
from torch import nn

from common.errors import RunFailed
from common.tasks import Examples, Task
from common.tensors import digest_bytes, encode, open_mapped
from common.training import Evaluation
from common.transfer import Piece, pieces
from server import app, configuration
from server.assignments import Assignment, Work
from server.checkpoints import RunDirectory, export_pth
from server.coordinator import Coordinator
from server.evaluation import Evaluator
from server.options import (
    CohortOptions,
    EvaluationOptions,
    RunOptions,
    ServerOptions,
    StrategyOptions,
)
from server.uploads import Announcement, Outcome

_STEPS = (
    *("open", "pwrite", "ftruncate", "fsync", "fdatasync"),
    *("rename", "replace", "link", "unlink", "mkdir", "rmdir"),
)
_CLIENTS = ("a", "b")
_ROUNDS = 2
_KILLED = -signal.SIGKILL


class Linear(Task):
    """A model of two chunks; the data is never looked at."""

    models = {"linear": lambda: nn.Linear(600, 500)}  # noqa: RUF012

    def data(self, data_dir: Path, train: bool) -> Examples:  # noqa: ARG002
        """Return nothing to speak of."""
        return Examples(torch.zeros(4, 600), torch.zeros(4, dtype=torch.long))

    def evaluate(self, model: nn.Module, examples: Examples) -> Evaluation:  # noqa: ARG002
        """Return what has a line in each file of metrics."""
        return Evaluation({"loss": 1.0}, [[4]])


class Life(NamedTuple):
    """How a life ended: the exit status, its steps, and the updates that were acknowledged."""

    status: int
    steps: list[str]
    acknowledged: list[tuple[int, str]]


@dataclass(frozen=True)
class Point:
    """Where a life is ended: before a step, or, of a write, after half of it."""

    step: int
    half: bool = False


def run(every: int, as_json: bool) -> None:
    """End a life at every so many-th step, check the next one, and print what came of it.

    Raises:
        RunFailed: a life ended otherwise than if its server had not been killed.
    """
    # Before gRPC begins anything, of which there is nothing in a life.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        undisturbed = Path(name) / "run"
        life = _live(undisturbed, None)
        if life.status:
            raise RunFailed(f"the undisturbed run ended with {life.status}")
        expected = _result(undisturbed)
    points, kinds, failures = list(_points(life.steps))[::every], Counter[str](), list[str]()
    for done, point in enumerate(points, 1):
        step = life.steps[point.step]
        kinds[step.split()[0] + ", half-way" * point.half] += 1
        problem = _check(point, expected)
        if problem:
            failures.append(f"{step} ({point}): {problem}")
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{done} of {len(points)} points, {len(failures)} failed ")
    _show(kinds, len(failures), as_json)
    if failures:
        raise RunFailed("; ".join(failures))


def _show(kinds: Counter[str], failures: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"points": kinds.total(), "failures": failures, "kinds": kinds}))
        return
    table = Table("killed before", "times")
    for kind, times in sorted(kinds.items()):
        table.add_row(kind, str(times))
    console = Console()
    console.print(table)
    console.print(f"{kinds.total()} points; {failures} times not as if undisturbed")


def _points(steps: list[str]) -> Iterator[Point]:
    for number, step in enumerate(steps):
        yield Point(number)
        if step.startswith("pwrite"):
            yield Point(number, half=True)


def _check(point: Point, expected: tuple[Any, ...]) -> str | None:
    """Return what is wrong after a kill at `point` and a restart."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        first = _live(folder, point)
        if first.status != _KILLED:
            return f"it was not reached; the life ended with {first.status}"
        second = _live(folder, None)
        if second.status:
            return f"the restarted server ended with {second.status}"
        found = _result(folder)
        if found != expected:
            unlike = [(was, now) for was, now in zip(expected, found, strict=True) if was != now]
            return f"the result differs: {unlike}"
        rows = [json.loads(x) for x in (folder / "clients.jsonl").read_text().splitlines()]
        counted = Counter((row["round"], row["client_id"]) for row in rows)
        acknowledged = {*first.acknowledged, *second.acknowledged}
        if not acknowledged <= set(counted) or max(counted.values()) > 1:
            return f"acknowledged {sorted(acknowledged)}, counted {dict(counted)}"
    return None


def _result(folder: Path) -> tuple[Any, ...]:
    """Return what must not depend on kills: models, rows, and which files there are."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    models = [(row["round"], row["accepted"], row["model_blake3"]) for row in rows]
    table = len((folder / "metrics.csv").read_text().splitlines())
    return models, table, (folder / "evaluations.jsonl").read_text(), files


# ------------------------------------------------------------------------------- one life


def _live(folder: Path, kill: Point | None) -> Life:
    """Run a server's life in a forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        status = 70
        try:
            status = _serve(folder, kill, writer)
        except BaseException:  # noqa: BLE001 - the forked process must not go on as its parent
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        told = [json.loads(line) for line in pipe.read().splitlines()]
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    steps = [line["step"] for line in told if "step" in line]
    return Life(status, steps, [tuple(x["acknowledged"]) for x in told if "acknowledged" in x])


def _serve(folder: Path, kill: Point | None, pipe: int) -> int:
    structlog.configure(processors=[_drop])
    write = os.write

    def tell(**event: object) -> None:
        write(pipe, (json.dumps(event) + "\n").encode())

    _count_steps(kill, lambda step: tell(step=step))
    directory = RunDirectory(folder)
    task = Linear()
    options = configuration.resolve(_options(folder, resume=directory.holds_run()), task)
    directory.lock()
    run_id = app.open_run(options, directory)
    evaluator = Evaluator(task, task.models["linear"](), task.data(folder, train=False))
    coordinator = app.prepare(options, task, directory, run_id, evaluator)
    if coordinator is not None:
        asyncio.run(_train(coordinator, lambda number, client: tell(acknowledged=(number, client))))
        export_pth(folder / "models")
    return 0


def _drop(_: WrappedLogger, __: str, ___: EventDict) -> EventDict:
    raise structlog.DropEvent


def _options(folder: Path, *, resume: bool) -> ServerOptions:
    name = f"{__name__}:{Linear.__name__}"
    options = ServerOptions(
        run=RunOptions(rounds=_ROUNDS, task=name, run_dir=folder, resume=resume),
        cohort=CohortOptions(min_clients=len(_CLIENTS), quorum=len(_CLIENTS)),
        strategy=StrategyOptions(strategy="fedavgm", server_momentum=0.5),
        evaluation=EvaluationOptions(keep_rounds=1),
    )
    return replace(options, split=replace(options.split, num_partitions=len(_CLIENTS)))


def _count_steps(kill: Point | None, tell: Callable[[str], None]) -> None:
    """Let this process die at a point of its life; until then, tell each step."""
    lock, count = threading.Lock(), 0

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401
            nonlocal count
            if name == "open" and not arguments[1] & os.O_CREAT:
                return call(*arguments, **keywords)
            with lock:
                # Threads may take turns otherwise than before: half a write is one of that step on.
                if kill is not None and count >= kill.step and (name == "pwrite" or not kill.half):
                    if kill.half:
                        descriptor, data, offset = arguments
                        call(descriptor, data[: len(data) // 2], offset)
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                tell(f"{name} {_named(arguments)}")
            return call(*arguments, **keywords)

        return step

    for name in _STEPS:
        setattr(os, name, counted(name, getattr(os, name)))


def _named(arguments: tuple[Any, ...]) -> str:
    """Return the names of the files that a step is about, without their folders."""
    paths = [Path(f"/proc/self/fd/{x}").resolve() if isinstance(x, int) else x for x in arguments]
    return " ".join(Path(path).name for path in paths if isinstance(path, str | Path))


async def _train(coordinator: Coordinator, acknowledge: Callable[[int, str], None]) -> None:
    run = asyncio.create_task(coordinator.run())
    await asyncio.sleep(0)  # It awaits the clients of before first.
    clients = [asyncio.create_task(_client(coordinator, name, acknowledge)) for name in _CLIENTS]
    await run
    await asyncio.gather(*clients)


async def _client(
    coordinator: Coordinator, name: str, acknowledge: Callable[[int, str], None]
) -> None:
    session = coordinator.sessions.join(name, "life", _CLIENTS.index(name))
    while not coordinator.ended:
        assignment = coordinator.assignments.of_client(name)
        if assignment is None:
            await session.wait(30.0)
        elif assignment.work is Work.EVALUATE:
            coordinator.report_evaluation(assignment, 10, {"loss": 1.0})
        elif await _push(coordinator, assignment) is Outcome.ACCEPTED:
            acknowledge(assignment.round, name)


async def _push(coordinator: Coordinator, assignment: Assignment) -> Outcome:
    """Push what this client always would for this model and seed."""
    model = coordinator.model(assignment.model_version)
    generator = torch.Generator().manual_seed(coordinator.seed_of(assignment))
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
        num_steps=1,
        metrics={"loss": 1.0},
    )

    async def chunks() -> AsyncIterator[Piece]:
        for piece in pieces(memoryview(update)):
            yield piece

    result = await coordinator.spool.receive(
        assignment.task_token, assignment.client_id, announcement, chunks(), coordinator
    )
    return result.outcome
