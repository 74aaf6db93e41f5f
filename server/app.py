"""Builds a server from its options, and runs it until its end or a signal.

The only place that wires objects together.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common import tracing
from common.durable import write_json
from common.encodings.plain import Plain
from common.errors import InputError, RunFailed, TensorError
from common.logs import configure_logs, get_logger
from common.seeds import derive_seed
from common.splits import Partitioner, check_targets
from common.tasks import Task, load_examples, load_task
from common.tensor_roles import TensorRoles, matching
from common.tensors import digest_file, encode, schema_of
from common.training import Hyperparameter
from server import configuration
from server.auth.callers import keep_secret, open_doors, operator_token
from server.engine.early_stopping import should_stop
from server.engine.engine import Standing
from server.engine.events import Phase
from server.engine.rounds import Policy, RoundEngine
from server.mlflow_reporting.launcher import END_SECONDS, INTERRUPTED_SECONDS, Tracker, target_of
from server.options import ServerOptions
from server.rpc.listeners import Ports, listen, start
from server.run.coordinator import Coordinator
from server.run.evaluation import Evaluator
from server.run.limits import Limits
from server.run.settings import RunSettings
from server.run.uploads import Spool
from server.storage import layout
from server.storage.checkpoints import Record, Recovered, RunDirectory, export_pth
from server.storage.metrics import Sinks
from server.storage.run_files import RunFiles, find_runs
from server.terminal import show_progress

log = get_logger()

# An update has its model's tensors and its own header, which may be a little longer.
_HEADER_ALLOWANCE = 64 * 1024
# A model is tried on these before a run begins.
_TRIED_EXAMPLES = 2
# How long the last clients may take to hear of the end and leave.
_FAREWELL_SECONDS = 10.0


def serve(options: ServerOptions) -> int:
    """Run a server; return the process's exit status: 0 at the run's end, 128 + n after signal n.

    Raises:
        InputError: wrong input.
        RunFailed: the run can't go on.
    """
    # Whatever is written into the run directory is for its owner alone.
    os.umask(0o077)
    return asyncio.run(_serve(options))


async def _serve(options: ServerOptions) -> int:
    torch.set_num_threads(options.process.threads)
    tracing.configure(options.process.otlp_endpoint, "folkmoot-server")
    task = load_task(options.run.task)
    options, evaluator = _resolve(options, task)
    folder = options.run.run_dir or Path()
    tracker = Tracker(folder, target_of(options.tracking), options.run.task)
    directory = RunDirectory(folder)
    token = operator_token(folder)
    access = open_doors(options.security, token)
    # First, so that a port in use leaves no half-made run behind.
    ports = listen(options.process, access, options.security)
    directory.lock()
    try:
        keep_secret(folder / layout.OPERATOR_TOKEN, token)
        run_id = open_run(options, directory)
        configure_logs(folder / layout.LOG)
        with _logged_failure():
            coordinator = prepare(options, task, directory, run_id, evaluator)
            if coordinator.status.view.phase is Phase.FINISHED:
                log.info(
                    "the run has ended already; a larger --rounds goes on with it", run_id=run_id
                )
            number = await _run(options, ports, coordinator, tracker)
    except (OSError, TensorError) as error:
        raise RunFailed(f"{folder}: {error}; mend it, then go on with --resume") from error
    if number is not None:
        log.info("interrupted", signal=number.name, resume=_again(options, folder))
        sys.stderr.flush()
        # A thread may still fold or evaluate; whatever it does is not committed.
        os._exit(128 + number)
    if coordinator.failure:
        raise RunFailed(coordinator.failure)
    return 0


@contextmanager
def _logged_failure() -> Iterator[None]:
    """Log why the server ends, if an error ends it."""
    try:
        yield
    except Exception as error:
        log.critical("server failed", reason=str(error) or type(error).__name__)
        raise


async def _run(
    options: ServerOptions, ports: Ports, coordinator: Coordinator, tracker: Tracker
) -> signal.Signals | None:
    """Serve until the run's end, or the signal that came before, which is returned."""
    folder = coordinator.directory.path
    ready = folder / layout.READY
    await start(ports, options, coordinator)
    where = ports.addresses
    if options.security.insecure:
        log.warning("plain text, and open to anyone (--insecure)", **where)
    write_json(ready, {"pid": os.getpid(), **where})
    log.info("server started", run_id=coordinator.settings.run_id, **where, run_dir=str(folder))
    mention_interrupted(options)
    progress = (
        asyncio.create_task(show_progress(coordinator.status, coordinator.offers))
        if sys.stderr.isatty()
        else None
    )
    await tracker.start()
    try:
        return await _run_until_signal(coordinator, tracker)
    finally:
        coordinator.shut_down()
        if progress is not None:
            progress.cancel()
        await ports.stop(1.0)
        await asyncio.to_thread(tracing.shut_down)
        ready.unlink(missing_ok=True)
        await tracker.finish(INTERRUPTED_SECONDS)


def mention_interrupted(options: ServerOptions) -> None:
    """Log how to go on with the run before this one, if it did not end: was --resume forgotten?"""
    folder = options.run.run_dir or Path()
    if options.run.resume or folder.parent != configuration.RUNS:
        return
    before = next((path for path in find_runs(folder.parent) if path != folder), None)
    # The .pth is written at a run's end.
    if before is None or layout.model(before).with_suffix(".pth").exists():
        return
    with suppress(InputError):
        run = RunFiles(before)
        if run.options["task"] == options.run.task and not run.running:
            log.info(
                "a new run; the last one of this task was interrupted",
                to_go_on=_again(options, before),
            )


def _again(options: ServerOptions, folder: Path) -> str:
    return f"--run-dir {folder} --resume{configuration.own_code(options)}"


def _resolve(given: ServerOptions, task: Task) -> tuple[ServerOptions, Evaluator | None]:
    """Return the resolved options, and what evaluates on the test set if that is wanted.

    Raises:
        InputError: wrong input; or the model, the data and what the task says do not fit.
    """
    options = configuration.resolve(given, task)
    if options.evaluation.evaluate_every == 0:
        return options, None
    hyperparameters = configuration.train_config(options.training).hyperparameters
    model = task.build(options.run.model or "", hyperparameters)
    held_out = load_examples(task, options.run.data_dir, train=False)
    targets = held_out.targets
    split = configuration.resolve_split(given.split, task, options.run.seed, targets)
    options = replace(options, split=split)
    # The clients find it in the training data, but the server's operator is the one to know.
    whole = not targets.is_floating_point()
    check_targets(Partitioner(split.partitioner), targets.shape, whole=whole)
    evaluator = Evaluator(task, model, held_out)
    if options.evaluation.target_accuracy is not None:
        configuration.check_accuracy(options, evaluator.try_out().metrics)
    elif type(task).evaluate is Task.evaluate:
        evaluator.try_out(_TRIED_EXAMPLES)
    return options, evaluator


def open_run(options: ServerOptions, directory: RunDirectory) -> str:
    """Save the run's configuration in its directory, which is locked; return the run id.

    Raises:
        InputError: the directory holds a run, and --resume is not given.
        CheckpointError: there is no run to resume.
    """
    resume = options.run.resume
    if directory.holds_run() and not resume:
        raise InputError(
            f"--run-dir: {directory.path} holds a run already; "
            "go on with it by --resume, or name another folder"
        )
    run_id = str(directory.load_config()["run_id"]) if resume else directory.path.resolve().name
    directory.save_config(configuration.describe(options, run_id))
    return run_id


def prepare(
    options: ServerOptions,
    task: Task,
    directory: RunDirectory,
    run_id: str,
    evaluator: Evaluator | None,
) -> Coordinator:
    """Begin the run, or recover it from its directory; it may have ended already.

    To be called on the event loop.

    Raises:
        CheckpointError: the last commit is damaged.
    """
    training = configuration.train_config(options.training)
    model = initial_model(task, options.run.model or "", options.run.seed, training.hyperparameters)
    roles = TensorRoles.of(model, matching(model.state_dict(), options.run.local_layers))
    recovered = directory.recover() or _begin_run(model, roles, directory)
    del model
    record, evaluation = recovered.record, options.evaluation
    directory.remove_old(record.round, evaluation.keep_rounds)
    sinks = Sinks(directory.path)
    rows = sinks.reconcile(record.row, record.clients, record.evaluation, record.lines)
    accuracy = record.row.accuracy if record.row else None
    ended = record.round >= options.run.rounds or should_stop(
        record.progress, accuracy, evaluation.target_accuracy, evaluation.patience
    )
    model_path = directory.model_path(record.round)
    spool = Spool(schema_of(model_path), Plain(), options.limits.max_update_norm)
    standing = _recover_standing(recovered, directory, spool)
    to_stop = directory.is_to_stop(options.run.rounds)
    if ended:
        standing = Standing(round=record.round, live=frozenset(record.live), ended=True)
    else:
        standing = replace(standing, stopping=to_stop)
    if not ended and (recovered.cohort or (record.round and not to_stop)):
        log.info(
            "run resumed",
            run_id=run_id,
            committed_round=record.round,
            accepted=sorted(standing.accepted),
        )
    return Coordinator(
        settings=options.pick(
            RunSettings,
            run_id=run_id,
            training=training,
            roles=roles,
            limits=options.pick(
                Limits, max_update_size_bytes=record.model.size_bytes + _HEADER_ALLOWANCE
            ),
        ),
        engine=RoundEngine(
            options.pick(
                Policy,
                client_evaluate_every=(
                    evaluation.client_evaluate_every if options.split.validation_fraction else 0
                ),
            )
        ),
        standing=standing,
        record=record,
        rows=rows,
        algorithm=configuration.algorithm(options),
        directory=directory,
        spool=spool,
        sinks=sinks,
        evaluator=evaluator,
        lease=options.cohort.lease,
    )


def initial_model(
    task: Task, name: str, seed: int, hyperparameters: Mapping[str, Hyperparameter]
) -> torch.nn.Module:
    """Return a run's initial model, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "model"))
        return task.build(name, hyperparameters)


def _begin_run(model: torch.nn.Module, roles: TensorRoles, directory: RunDirectory) -> Recovered:
    shared = roles.travelling(model.state_dict())
    for name, tensor in shared.items():
        if tensor.dtype is torch.bool or tensor.is_complex():
            raise InputError(
                f"--model: {name!r} is of dtype {tensor.dtype}, which has no mean; "
                "keep it out of the state dict (register_buffer(..., persistent=False))"
            )
    directory.begin_initial(encode(shared))
    record = Record(round=0, model=digest_file(directory.model_path(0)))
    directory.commit(record)
    return Recovered(record=record)


def _recover_standing(recovered: Recovered, directory: RunDirectory, spool: Spool) -> Standing:
    record, cohort = recovered.record, recovered.cohort
    if cohort is None:
        return Standing(round=record.round + 1, live=frozenset(record.live))
    folder, base = directory.updates_folder(cohort.round), directory.model_path(record.round)
    damaged = spool.recover(folder, base, cohort.round, cohort.attempt)
    missing = ", ".join(sorted(set(cohort.cohort) - spool.accepted.keys()))
    for client in damaged:
        log.warning(
            "accepted update is damaged; its client trains again",
            round=cohort.round,
            client=client or f"one of {missing}",
        )
    return Standing(
        round=cohort.round,
        attempt=cohort.attempt,
        live=frozenset(cohort.live),
        cohort=cohort.cohort,
        goal=cohort.goal,
        accepted=frozenset(spool.accepted),
    )


async def _run_until_signal(coordinator: Coordinator, tracker: Tracker) -> signal.Signals | None:
    """Run to the end and say farewell to the clients, or return the signal that came before."""
    received: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()

    def on_signal(number: signal.Signals) -> None:
        if received.done():
            os._exit(128 + number)
        received.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    run = asyncio.create_task(_run_and_farewell(coordinator, tracker))
    waits: set[asyncio.Future[Any]] = {run, received}
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if run.done():
        run.result()
        return None
    run.cancel()
    return received.result()


def _reason(coordinator: Coordinator) -> str:
    view = coordinator.status.view
    if view.failure:
        return "failed"
    if view.stopping:
        return "stopped by an operator"
    if coordinator.offers.newest_model.version < view.rounds:
        return "stopped early, by --target-accuracy or --patience"
    return "all rounds done"


async def _run_and_farewell(coordinator: Coordinator, tracker: Tracker) -> None:
    await coordinator.run()
    folder = coordinator.directory.path
    written = await asyncio.to_thread(export_pth, folder / layout.MODELS)
    log.info(
        "run ended",
        run_id=coordinator.settings.run_id,
        reason=_reason(coordinator),
        rounds=coordinator.offers.newest_model.version,
        models=[str(path) for path in written],
    )
    clock = coordinator.clock
    until = clock() + _FAREWELL_SECONDS
    sessions = coordinator.sessions
    # Those, too, who did not hear of the end because the server was killed at it.
    while (len(sessions) or sessions.awaited) and clock() < until:  # noqa: ASYNC110 - rare, short
        await asyncio.sleep(0.05)
    await tracker.finish(END_SECONDS)
