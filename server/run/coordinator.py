"""The async shell around the round engine: feeds it events and runs its effects.

The only place where round state changes. Quick effects run at once; slow ones one after
the other, in a task of their own. Knows nothing about gRPC.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from common import tracing
from common.algorithms import Algorithm, CannotAggregate, Contribution
from common.algorithms.base import Scalars
from common.bounds import BLAKE3, MAX_METRIC_NAME
from common.errors import FolkmootError, RequestError, RunFailed, Status
from common.loading import describe
from common.logs import get_logger
from common.printable import printable
from common.seeds import derive_seed
from common.tensor_roles import TensorRoles
from common.tensors import Digest
from common.training import Metrics, TrainConfig
from common.transfer import Piece
from server.aggregation.fold import DamagedUpdate, SpooledUpdate, fold
from server.aggregation.weighting import capped_weights, outliers
from server.engine import events
from server.engine.early_stopping import should_stop, worthless
from server.engine.engine import Engine, RunView, Standing
from server.engine.events import Phase
from server.run.assignments import Assignment, Assignments, Work, task_token
from server.run.clock import RunningClock
from server.run.evaluation import Evaluator
from server.run.ledger import RoundLedger, RoundSummary, Traffic, committed
from server.run.limits import Limits, metrics_objection, numbers_objection
from server.run.sessions import Activity, Sessions
from server.run.uploads import (
    NOT_WANTED,
    Announcement,
    Invalid,
    PushResult,
    Received,
    Spool,
    Stream,
    Superseded,
    not_stored,
)
from server.storage.checkpoints import Cohort, ModelFile, Record, RunDirectory
from server.storage.metrics import Row, Sinks, by_class, finite_only

# What a client says when its training came to NaN or infinity, or went too far.
_DIVERGED = ("UPDATE_NOT_FINITE", "LOSS_NOT_FINITE", "UPDATE_TOO_LONG")
# Of a row, in the log's line.
_HEADLINE = (
    *("global_accuracy", "global_loss", "client_accuracy", "client_accuracy_p10"),
    *("fine_tuning_gain", "train_loss"),
)
_ACTIVITIES = {
    None: Activity.WAITING,
    Work.TRAIN: Activity.TRAINING,
    Work.EVALUATE: Activity.EVALUATING,
}


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What the coordinator needs of the run's options."""

    run_id: str
    seed: int
    target_accuracy: float | None
    patience: int | None
    keep_rounds: int
    limits: Limits
    max_share: float
    max_norm_ratio: float
    training: TrainConfig
    # Of the model: those that optimizers step, and those that stay with their clients.
    roles: TensorRoles


class Coordinator:
    """Runs the rounds of one run; everything happens on one event loop.

    Args:
        engine: decides what follows from what happens.
        standing: where the run stands. With a cohort, that attempt was under way before a
            restart: it is durable, and its accepted updates are in the spool.
        record: the last committed round.
        rows: the committed rows so far.
        evaluator: None when the server never evaluates.
    """

    def __init__(
        self,
        *,
        settings: RunSettings,
        engine: Engine[Any],
        standing: Standing,
        record: Record,
        rows: list[Row],
        algorithm: Algorithm,
        directory: RunDirectory,
        spool: Spool,
        sinks: Sinks,
        evaluator: Evaluator | None,
        lease: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._engine = engine
        self._look_seconds = min(1.0, lease / 4)
        self.clock = RunningClock(clock, 2 * self._look_seconds)
        self.assignments = Assignments(self._work_changed)
        self.sessions = Sessions(
            lease, self.clock, self._client_joined, self._client_left, settings.limits.max_clients
        )
        self.sessions.await_clients(standing.live)
        self.spool = spool
        self.revision = 1
        self.ended = False
        self.shutting_down = False
        self.history = [committed(row) for row in rows]
        self._log = get_logger().bind(run_id=settings.run_id)
        self._record = record
        self.algorithm = algorithm
        self.directory = directory
        self._sinks = sinks
        self._evaluator = evaluator
        self.traffic = Traffic()
        self._ledger = RoundLedger(self.clock(), len(standing.live), self.traffic)
        self._warned = self._worthless() is not None
        self._trace = tracing.OFF
        self._recovered = (standing.round, standing.attempt) if standing.cohort else None
        if standing.cohort:  # It may have all its updates, and not begin again.
            self._log = self._log.bind(round=standing.round, attempt=standing.attempt)
        self._effects: asyncio.Queue[events.Effect | OSError] = asyncio.Queue()
        self._ordering = asyncio.Lock()
        self._deadline: asyncio.TimerHandle | None = None
        self._deadline_at = 0.0
        self._changed = asyncio.Event()
        path = directory.model_path(record.round)
        self._models = {record.round: ModelFile(record.round, path, record.model)}
        # Before any client is heard, and so on the event loop: a deadline may begin.
        self._state, effects = engine.resume(standing)
        self.view = engine.view(self._state)
        self._start(self.view, effects)

    # ------------------------------------------------------------- for the app

    async def run(self) -> None:
        """Run rounds until the engine finishes.

        Raises:
            RunFailed: an accepted update was damaged before it was counted.
            OSError: the run directory can't be written.
            TensorError: a file in it was damaged while in use.
        """
        if self.view.phase is Phase.SELECTING:
            self._log.info("waiting for clients", needed=self.view.min_clients)
        expiry = asyncio.create_task(self._expire_sessions())
        try:
            while not self.ended:
                effect = await self._effects.get()
                if isinstance(effect, OSError):
                    raise effect
                await self._run_effect(effect)
        finally:
            expiry.cancel()
            if self._deadline is not None:
                self._deadline.cancel()

    def shut_down(self) -> None:
        """Let every waiting poll and watcher know that the server is going."""
        self.shutting_down = True
        self._trace.note(outcome="interrupted")
        self._trace.end()
        self._bump()
        self.sessions.wake_all()

    # -------------------------------------------------------- for the gRPC edge

    async def stop(self) -> None:
        """Make the current round the last one, durably before it is so.

        Raises:
            OSError: the order can't be written; the run goes on.
        """
        async with self._ordering:
            if not self.view.stopping:
                await asyncio.to_thread(self.directory.order_stop, self.view.rounds)
                self.apply(events.StopRequested())

    def apply(
        self, event: events.Event, received: Received | None = None
    ) -> tuple[events.Effect, ...]:
        """Take an event, of a received update or another, through the table; run its effects.

        Returns:
            the effects, of which slow ones have only been started.
        """
        before = self._state
        self._state, effects = self._engine.transition(before, event)
        if self._state is not before or effects:
            seen, self.view = self.view, self._engine.view(self._state)
            self._start(seen, effects, received)
        return effects

    def find(self, task_token: str, client_id: str) -> Assignment | None:
        """Return the client's open training assignment with this token."""
        assignment = self.assignments.find(task_token, client_id)
        return assignment if assignment and assignment.work is Work.TRAIN else None

    def objection(self, assignment: Assignment, announcement: Announcement) -> str | None:
        """Return why the announced update is invalid, None if it is not."""
        base = self._models.get(announcement.base_version)
        limits = self.settings.limits
        if not 1 <= announcement.num_examples <= limits.max_examples:
            most = limits.max_examples
            return f"num_examples must be 1 to {most} (the server's --max-examples)"
        size = announcement.digest.size_bytes
        if not BLAKE3.fullmatch(announcement.digest.blake3):
            return "digest.blake3 must be 64 lower-case hexadecimal digits"
        if not 0 <= size <= limits.max_update_size_bytes:
            return f"the update has {size} bytes, the limit is {limits.max_update_size_bytes}"
        if base is None or base.version != assignment.model_version:
            return f"base_model must be version {assignment.model_version}"
        if base.digest != announcement.base_digest:
            return "base_model's digest is not that of the model that was handed out"
        training = self.settings.training
        most_steps = training.local_epochs * -(-announcement.num_examples // training.batch_size)
        return (
            metrics_objection(announcement.metrics)
            or numbers_objection("scalars", announcement.scalars)
            or self.algorithm.objection(announcement.scalars, most_steps)
        )

    async def push(
        self,
        task_token: str,
        client_id: str,
        announcement: Announcement,
        chunks: AsyncIterator[Piece],
    ) -> PushResult:
        """Take one stream of an upload, from its header to its one outcome."""
        spool, assignment = self.spool, self.find(task_token, client_id)
        final = spool.final(client_id, task_token)
        if final is not None or assignment is None:
            return final or NOT_WANTED
        objection = self.objection(assignment, announcement)
        if objection is not None:
            return self._refuse(assignment, objection)
        stream = spool.open(assignment, announcement)
        if isinstance(stream, PushResult):
            return stream
        async for chunk in chunks:
            resent = spool.resent(stream, chunk)
            self._ledger.count_up(client_id, len(chunk.data), resent)
            # It is done to its end, and decided, even if the stream is cut.
            taking = asyncio.ensure_future(self._take(stream, chunk))
            result = await asyncio.shield(taking)
            if result is not None:
                return result
        return spool.end(stream) or self._superseded(assignment)

    async def _take(self, stream: Stream, chunk: Piece) -> PushResult | None:
        assignment = stream.upload.assignment
        match await self.spool.receive(stream, chunk):
            case Received() as received:
                return await self._decide(assignment, received)
            case Invalid(message):
                return self._refuse(assignment, message)
            case Superseded():
                return self._superseded(assignment)
            case result:
                return result

    async def _decide(self, assignment: Assignment, received: Received) -> PushResult:
        """Let the engine decide whether a valid, durable update counts."""
        client = assignment.client_id
        event = events.UpdateReceived(assignment.round, assignment.attempt, client)
        try:
            if events.KeepUpdate(client) not in self.apply(event, received):
                return self.spool.discard(received)
            return await self.spool.sync(received)
        except OSError as error:
            # The engine counts what the disk may not hold. Only a restart, which counts what it
            # finds there, puts that right.
            self._effects.put_nowait(error)
            return not_stored(received.upload.path, error)

    def _refuse(self, assignment: Assignment, message: str) -> PushResult:
        """Count an invalid update; its client is out of this attempt."""
        result = self.spool.refuse(assignment, message)
        self._log.warning("update refused", client=assignment.client_id, reason=message)
        self._ledger.refused.add(assignment.client_id)
        self.assignments.finish(assignment.task_token)
        self.apply(events.WorkFailed(assignment.round, assignment.attempt, assignment.client_id))
        return result

    def _superseded(self, assignment: Assignment) -> PushResult:
        """Return what a stream is told whose upload or attempt is over, or has a newer stream."""
        token, client = assignment.task_token, assignment.client_id
        final = self.spool.final(client, token)
        if final is None and self.find(token, client) is None:
            return NOT_WANTED
        return final or self.spool.superseded(assignment)

    def report_failure(self, assignment: Assignment, reason: str, message: str) -> None:
        """Take a client's report that its work can't be done."""
        client = assignment.client_id
        self._log.warning("client failed", client=client, reason=reason, message=message)
        if reason in _DIVERGED:
            self._ledger.diverged.add(client)
        self.assignments.finish(assignment.task_token)
        self.apply(events.WorkFailed(assignment.round, assignment.attempt, client))

    def report_evaluation(
        self, assignment: Assignment, num_examples: int, metrics: Metrics
    ) -> None:
        """Take a client's evaluation of the candidate."""
        client = assignment.client_id
        self._ledger.evaluations[client] = (num_examples, metrics)
        self.assignments.finish(assignment.task_token)
        self.apply(events.ClientEvaluated(assignment.round, assignment.attempt, client))

    @property
    def failure(self) -> str | None:
        """Why the run failed, and what to change if its model had become worthless."""
        failure, worthless = self.view.failure, self._worthless()
        return f"{failure}; {worthless}" if failure and worthless else failure

    @property
    def ledger(self) -> RoundLedger:
        """What happens in the current attempt."""
        return self._ledger

    def model(self, version: int) -> ModelFile:
        """Return a model that clients may pull.

        Raises:
            RequestError: MODEL_UNKNOWN.
        """
        if version not in self._models:
            message = f"model {version} is not offered; poll for an assignment"
            raise RequestError(Status.NOT_FOUND, "MODEL_UNKNOWN", message)
        return self._models[version]

    def payload(self, version: int, name: str) -> ModelFile:
        """Return what clients may pull beside a model, by its name.

        Raises:
            RequestError: MODEL_UNKNOWN.
        """
        self.model(version)
        if name not in self.payloads(version):
            message = f"model {version} has no payload {printable(name, MAX_METRIC_NAME)!r}"
            raise RequestError(Status.NOT_FOUND, "MODEL_UNKNOWN", message)
        path = self.directory.state_path(version, name)
        return ModelFile(version, path, self._record.state[name])

    def payloads(self, version: int) -> dict[str, Digest]:
        """Return the digests of what clients may pull beside a model, by name."""
        half, held = self.algorithm.client, self._record.state
        if half is None or version != self._record.round:
            return {}
        return {name: held[name] for name in half.payloads if name in held}

    @property
    def scalars(self) -> Scalars:
        """What the algorithm tells the clients beside its payloads."""
        return self.algorithm.scalars(self._record.notes)

    def previous_round(self, client_id: str) -> int:
        """Return the last round that counted an update of a client; 0: none.

        While a round's model is evaluated, that round is one of them.
        """
        view = self.view
        if view.phase is Phase.EVALUATING and client_id in view.accepted:
            return view.round
        return self._record.contributed.get(client_id, 0)

    @property
    def newest_model(self) -> ModelFile:
        """The last committed model."""
        return self._models[self._record.round]

    def seed_of(self, assignment: Assignment) -> int:
        """Return the seed of every random choice in an assignment's work."""
        return derive_seed(
            self.settings.seed, assignment.work.value, assignment.round, assignment.client_id
        )

    @property
    def time_remaining(self) -> float:
        """Seconds until the current phase's deadline, at least 0."""
        return max(0.0, self._deadline_at - self.clock())

    def current_round(self) -> RoundSummary:
        """Return the attempt in progress, or the last round when the run has ended."""
        if self.view.phase is not Phase.FINISHED:
            return self._ledger.summary(self.view, self.view.phase.value)
        if self.history:
            return self.history[-1]
        return self._ledger.summary(self.view, Phase.SELECTING.value)

    async def wait_for_change(self, revision: int, seconds: float) -> None:
        """Return once the run is newer than `revision`, or after so many seconds."""
        if self.revision > revision:
            return
        changed = self._changed
        try:
            await asyncio.wait_for(changed.wait(), seconds)
        except TimeoutError:
            return

    # ---------------------------------------------------------------- the engine

    def _client_joined(self, client_id: str) -> None:
        self._ledger.partitions[client_id] = self.sessions.by_client[client_id].partition
        assignment = self.assignments.of_client(client_id)
        self._work_changed(client_id, assignment.work if assignment else None)
        self.apply(events.ClientJoined(client_id))
        if self.view.phase is Phase.SELECTING:
            needed = self.view.min_clients
            self._log.info("waiting for clients", live=len(self.view.live), needed=needed)

    def _client_left(self, client_id: str) -> None:
        self._ledger.left[client_id] = self.clock()
        self.apply(events.ClientLeft(client_id))

    def _work_changed(self, client_id: str, work: Work | None) -> None:
        session = self.sessions.by_client.get(client_id)
        if session is not None:
            session.turn_to(_ACTIVITIES[work])

    def _start(
        self,
        before: RunView,
        effects: tuple[events.Effect, ...],
        received: Received | None = None,
    ) -> None:
        for effect in effects:
            match effect:
                case events.StartDeadline(seconds, event):
                    self._start_deadline(seconds, event)
                case events.KeepUpdate() if received:
                    self._accept(received)
                case events.Abandon():
                    self.history.append(self._ledger.summary(before, "abandoned"))
                    self._stop_collecting()
                    self._effects.put_nowait(effect)
                case events.Aggregate():
                    self._stop_collecting()
                    self._effects.put_nowait(effect)
                case _:
                    self._effects.put_nowait(effect)
        self._bump()

    def _bump(self) -> None:
        self.revision += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _start_deadline(self, seconds: float, event: events.DeadlinePassed) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline_at = self.clock() + seconds
        self._wait_for_deadline(event)

    def _wait_for_deadline(self, event: events.DeadlinePassed) -> None:
        if self.time_remaining == 0:
            self.apply(event)
            return
        # The loop counts time in which the run's clock stands still.
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self.time_remaining, self._wait_for_deadline, event)

    def _accept(self, received: Received) -> None:
        self.spool.accept(received)
        update = received.update
        client_id = update.client_id
        self.assignments.finish(update.task_token)
        session = self.sessions.by_client.get(client_id)
        if session is not None:
            session.trained = (update.num_examples, {**update.metrics})
        self._ledger.report_seconds[client_id] = self.clock() - self._ledger.began
        self._log.info(
            "update accepted",
            client=client_id,
            accepted=len(self.view.accepted),
            goal=self.view.goal,
            examples=update.num_examples,
        )

    def _stop_collecting(self) -> None:
        self.spool.close()
        self.assignments.replace(())
        self._ledger.collected = self.clock()

    async def _expire_sessions(self) -> None:
        stood = self.clock.stood
        while True:
            await asyncio.sleep(self._look_seconds)
            self.clock()
            if self.clock.stood > stood:
                seconds = round(self.clock.stood - stood, 1)
                self._log.warning(
                    "the server stood still; that time does not count", seconds=seconds
                )
                stood = self.clock.stood
            for client_id in self.sessions.expire():
                self._log.warning(
                    "client lost", client=client_id, lease_seconds=self.sessions.lease
                )

    async def _run_effect(self, effect: events.Effect) -> None:
        match effect:
            case events.BeginRound(number, attempt):
                await self._begin_round(number, attempt)
            case events.Aggregate():
                with self._span("aggregate"):
                    await self._aggregate()
            case events.Evaluate(on_server, clients):
                await self._evaluate(on_server, clients)
            case events.Commit():
                with self._span("commit"):
                    await self._commit()
                self._end_trace(self.history[-1])
            case events.Abandon(number, _, reason):
                await self._abandon(number, reason)
                self._end_trace(self.history[-1])
            case events.Finish():
                await asyncio.to_thread(self.directory.remove_spare)
                await self._remove_old_rounds()
                self.ended = True
                self._bump()
                self.sessions.wake_all()

    async def _begin_round(self, number: int, attempt: int) -> None:
        view = self.view
        if (number, attempt, Phase.REPORTING) != (view.round, view.attempt, view.phase):
            return
        held = {client: found.partition for client, found in self.sessions.by_client.items()}
        self._ledger = RoundLedger(self.clock(), len(view.live), self.traffic, held)
        if (number, attempt) != self._recovered:
            cohort = Cohort(
                round=number,
                attempt=attempt,
                cohort=view.cohort,
                goal=view.goal,
                live=tuple(sorted(view.live)),
            )
            await asyncio.to_thread(self.directory.begin_attempt, cohort)
            folder, spares = self.directory.updates_folder(number), self.directory.spares()
            self.spool.begin(folder, self.newest_model.path, spares)
        if (number, attempt, Phase.REPORTING) != (
            self.view.round,
            self.view.attempt,
            self.view.phase,
        ):
            return
        self._begin_trace(view)
        # Those who are lost, too: they may come back in time.
        workers = sorted(self.view.pending | self.view.lost)
        self._log = self._log.bind(round=number, attempt=attempt)
        self._log.info(
            "round began",
            cohort=len(view.cohort),
            goal=view.goal,
            live=len(view.live),
        )
        self._assign(workers, Work.TRAIN, self._record.round)
        # Deleting large files takes a while; the cohort is busy meanwhile.
        await self._remove_old_rounds()

    async def _remove_old_rounds(self) -> None:
        keep = self.settings.keep_rounds
        await asyncio.to_thread(self.directory.remove_old, self._record.round, keep)

    def _assign(self, clients: Iterable[str], work: Work, version: int) -> None:
        number, attempt = self.view.round, self.view.attempt
        run_id = self.settings.run_id
        self.assignments.replace(
            Assignment(
                task_token(run_id, number, attempt, client, work),
                client,
                number,
                attempt,
                work,
                version,
                self._trace.traceparent,
            )
            for client in clients
        )
        self.sessions.wake(clients)

    async def _aggregate(self) -> None:
        number = self.view.round
        if self._reject_outliers():
            return
        updates = [self.spool.accepted[client] for client in sorted(self.view.accepted)]
        weights = capped_weights([u.num_examples for u in updates], self.settings.max_share)
        spooled = [
            SpooledUpdate(
                self.spool.path_of(update),
                update.client_id,
                update.digest,
                Contribution(weight, update.scalars),
            )
            for update, weight in zip(updates, weights, strict=True)
        ]
        last, directory = self._record.round, self.directory
        try:
            folded = await asyncio.to_thread(
                fold,
                directory.model_path(last),
                {name: directory.state_path(last, name) for name in self._record.state},
                self._record.notes,
                spooled,
                self.algorithm,
                self.settings.roles.trained,
                self.spool.encoding,
                directory.model_path(number),
                {name: directory.state_path(number, name) for name in self.algorithm.state_names},
            )
        except DamagedUpdate as error:
            raise RunFailed(f"{error}; go on with --resume, and it is trained again") from error
        except CannotAggregate as error:
            self.apply(events.AggregationFailed(str(error)))
            return
        except (FolkmootError, OSError):
            raise
        except Exception as error:  # the algorithm's own code, which may raise anything
            raise RunFailed(f"--strategy: {describe(error)}") from error
        self._ledger.folded = folded
        self._ledger.shares = dict(
            zip((update.client_id for update in updates), folded.shares, strict=True)
        )
        self._ledger.aggregated = self.clock()
        self.apply(events.Aggregated())

    def _reject_outliers(self) -> bool:
        """Leave out the updates that are too long for a mean; say whether that ends the attempt.

        Of the durable records alone, so that a resumed run decides as this one does.
        """
        ratio, updates = self.settings.max_norm_ratio, self.spool.accepted
        found = outliers({client: update.norm for client, update in updates.items()}, ratio)
        for client in sorted(found.clients):
            self._log.warning(
                "update left out: it is far longer than the others (--max-norm-ratio)",
                client=client,
                norm=updates[client].norm,
                median=found.median,
                max_norm_ratio=ratio,
            )
        if not found.clients:
            return False
        self._ledger.refused |= found.clients
        reason = (
            f"{len(found.clients)} updates are longer than {ratio:g} times the median "
            "(--max-norm-ratio)"
        )
        return bool(self.apply(events.UpdatesRejected(found.clients, reason)))

    async def _evaluate(self, on_server: bool, clients: tuple[str, ...]) -> None:
        number, attempt = self.view.round, self._ledger
        path = self.directory.model_path(number)
        attempt.evaluating_since = self.clock()
        if attempt.folded is not None:
            self._models[number] = ModelFile(number, path, attempt.folded.model)
            self._assign(clients, Work.EVALUATE, number)
        if on_server and self._evaluator is not None:
            with self._span("evaluate"):
                found = await asyncio.to_thread(self._evaluator.evaluate, path)
            attempt.global_metrics = finite_only(found.metrics)
            attempt.confusion = found.confusion
            if len(attempt.global_metrics) < len(found.metrics):
                self._log.warning("evaluation is not finite")
            attempt.loss_is_finite = math.isfinite(found.metrics.get("loss", 0.0))
            self.apply(events.ServerEvaluated())

    async def _commit(self) -> None:
        view, updates = self.view, self.spool.accepted
        self.assignments.replace(())
        row, progress = self._ledger.row(view, updates, self._record.progress, self.clock())
        clients = self._ledger.client_rows(view, updates)
        confusion = self._ledger.confusion
        evaluation = by_class(view.round, confusion) if confusion else None
        if self._ledger.folded is None:
            raise ValueError("a round is committed after its updates were aggregated")
        record = Record(
            round=view.round,
            model=self._ledger.folded.model,
            state=self._ledger.folded.state,
            notes=self._ledger.folded.notes,
            contributed={
                **self._record.contributed,
                **dict.fromkeys(sorted(view.accepted), view.round),
            },
            live=tuple(sorted(view.live)),
            progress=progress,
            row=row,
            clients=tuple(clients),
            evaluation=evaluation,
            lines=self._sinks.counts_with(clients, evaluation),
        )
        began = self.clock()
        model = await asyncio.to_thread(self.directory.commit, record)
        row = replace(row, commit_seconds=round(self.clock() - began, 4))
        self._record, self._models = record, {model.version: model}
        await asyncio.to_thread(self._sinks.append, row, clients, evaluation)
        self.history.append(committed(row))
        self._log.info("round committed", **_headline(row))
        self._warn_if_worthless()
        settings = self.settings
        evaluated = any(count for count, _ in self._ledger.evaluations.values())
        if settings.target_accuracy is not None and row.accuracy is None and evaluated:
            self._log.warning(
                "--target-accuracy has no effect: the clients' evaluation has no accuracy"
            )
        stop = should_stop(progress, row.accuracy, settings.target_accuracy, settings.patience)
        self.apply(events.Committed(stop))

    def _worthless(self) -> str | None:
        """Return why the model is worthless, and what to change; None if it is not."""
        diverging = bool(self._ledger.diverged)
        why = worthless(self._record.progress, self.settings.patience, diverging)
        if why is None:
            return None
        ratio = self.settings.max_norm_ratio
        longest = f"below {ratio:g}" if ratio else "above 0, where the strategy takes one"
        return f"{why}; start again with a smaller --lr, or with a --max-norm-ratio {longest}"

    def _warn_if_worthless(self) -> None:
        """Say so once, for a resumed run too."""
        why = self._worthless()
        if why is not None and not self._warned:
            self._log.warning(why, best_round=self._record.progress.best_round)
            self._warned = True

    async def _abandon(self, number: int, reason: str) -> None:
        self._log.warning("round abandoned", reason=reason)
        self._warn_if_worthless()
        await asyncio.to_thread(self.directory.abandon_attempt, number)

    # -------------------------------------------------------------------- traces

    def _begin_trace(self, view: RunView) -> None:
        self._trace = tracing.trace(
            "round",
            run=self.settings.run_id,
            round=view.round,
            attempt=view.attempt,
            cohort=len(view.cohort),
            goal=view.goal,
        )

    def _span(self, name: str) -> tracing.Span:
        return tracing.span(name, self._trace.traceparent)

    def _end_trace(self, ended: RoundSummary) -> None:
        self._trace.note(
            outcome=ended.phase,
            accepted=ended.accepted,
            refused=ended.refused,
            dropped=ended.dropped,
        )
        self._trace.end()
        self._trace = tracing.OFF


def _headline(row: Row) -> dict[str, int | float]:
    """Return what a person wants to see of a row in one line."""
    return {
        **{
            name: round(value, 4) for name in _HEADLINE if (value := getattr(row, name)) is not None
        },
        **{name: round(value, 4) for name, value in row.own().items()},
        "updates": row.accepted,
        "seconds": round(row.duration_seconds, 2),
    }
