"""One client's life: join, poll, work, report, and again, until the run ends.

A process runs one `Runner` a partition, each in a thread; they share a `ProcessContext`.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import structlog

from client.connection import Connection, RunEnded, SessionLost, Stopped, Superseded, WorkLost
from client.data import LocalData, load_partitions
from client.progress import StepProgress
from client.promises import (
    MOST_TEXT,
    Bounds,
    BrokenPromise,
    LimitExceeded,
    Session,
    algorithm_of,
    hyperparameters_of,
    seconds_of,
    train_config,
)
from client.state import ClientState
from client.trainer import Trainer, WorkFailed
from common import __version__, tracing
from common.algorithms import BUILT_IN as BUILT_IN_ALGORITHMS
from common.algorithms import ClientHalf, ClientRound, load_algorithm
from common.algorithms.base import NUM_STEPS
from common.algorithms.optimizers import Tensors
from common.encodings.plain import Plain
from common.errors import FolkmootError, InputError, RunFailed, TensorError
from common.loading import describe
from common.logs import get_logger
from common.printable import printable
from common.tasks import load_task
from common.tensors import Digest, allocate, check_finite, copy_header, digest_bytes, views
from common.training import OnStep, Trained
from protos import federated_pb2 as pb

if TYPE_CHECKING:
    import torch

log = get_logger()


# A model's file has a header, too.
_HEADER_ALLOWANCE = 16 << 20
_ENCODING = Plain()
# A poll that is answered sooner, and with nothing to do, is not asked again at once.
_LEAST_WAIT_SECONDS = 1.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0


class PulledModel(NamedTuple):
    """A model's safetensors bytes, and its tensors as views of them; never written to."""

    payload: memoryview
    tensors: dict[str, torch.Tensor]


class Means(NamedTuple):
    """What a client works with, in one session."""

    trainer: Trainer
    data: LocalData
    session: Session


@dataclass(frozen=True, kw_only=True)
class Pushable:
    """A trained update, ready to be sent again until it is answered."""

    # What it was trained for: the assignment's token, base model and seed.
    work: tuple[bytes, str, int]
    payload: memoryview
    digest: Digest
    trained: Trained


class ProcessContext:
    """What the clients of a process share: data, one trainer, and the model last pulled.

    One of them works at a time: several at once would only slow each other down.
    """

    def __init__(
        self,
        connection: Connection,
        task_names: list[str],
        partitions: list[int],
        data_dir: Path,
        state_dir: Path,
        device: str,
        stop: threading.Event,
        progress: StepProgress,
        join_token: str = "",
        strategy: str | None = None,
    ) -> None:
        self.strategy = strategy
        self.connection = connection
        self.state_dir = state_dir
        self.join_token = join_token
        self.task_names = task_names
        self.stop = stop
        self.progress = progress
        self.turn = threading.Lock()
        self.joining = threading.Lock()
        self._partitions = partitions
        self._data_dir = data_dir
        self._device = device
        self._loading = threading.Lock()
        self._spec = b""
        self._trainer: Trainer | None = None
        self._data: dict[int, LocalData] = {}
        self._pulling = threading.Lock()
        self._sparing = threading.Lock()
        # The newest model ("") and the newest of each payload beside it that were pulled.
        self._pulled: dict[str, tuple[Digest, PulledModel]] = {}
        # The last update's bytes, once it is pushed: new memory costs more than a copy into old.
        self._spare: memoryview | None = None

    def prepare(self, session: Session, partition: int) -> tuple[Trainer, LocalData]:
        """Return the trainer and a partition's data, loaded when they are first asked for.

        Raises:
            InputError: the task's code or data is missing, or does not fit the run.
        """
        spec = session.task
        with self._loading:
            key = spec.SerializeToString(deterministic=True)
            if self._trainer is None or key != self._spec:
                task = load_task(spec.task_name)
                if spec.model_name not in task.models:
                    raise InputError(
                        f"--task: {spec.task_name} has no model {spec.model_name!r} here; "
                        "install the server's version of the task"
                    )
                began = time.monotonic()
                self._data = load_partitions(
                    task, self._data_dir, session.split, self._partitions, self._device
                )
                try:
                    self._trainer = Trainer(
                        task,
                        spec.model_name,
                        self._device,
                        spec.local_tensors,
                        spec.split.seed,
                        hyperparameters_of(spec.hyperparameters),
                    )
                except FolkmootError:
                    raise
                except Exception as error:  # the task's own code, which may raise anything
                    raise InputError(
                        f"--task: {spec.task_name}: model {spec.model_name}: {describe(error)}"
                    ) from error
                self._spec = key
                seconds = round(time.monotonic() - began, 1)
                log.info("data loaded", task=spec.task_name, seconds=seconds)
            return self._trainer, self._data[partition]

    def client_half(self, name: str) -> type[ClientHalf]:
        """Return what clients do in the algorithm of this name.

        Raises:
            InputError: it is someone's own, for which this process was not started.
            BrokenPromise: clients do nothing in it.
        """
        if name not in BUILT_IN_ALGORITHMS and name != self.strategy:
            remedy = (
                "if you trust that code, start it with that --strategy"
                if ":" in name
                else "install the server's version of Folkmoot"
            )
            raise InputError(
                f"--strategy: the server runs {printable(name, MOST_TEXT)!r}, which this "
                f"client was not started for; {remedy}"
            )
        half = load_algorithm(name).client
        if half is None:
            raise BrokenPromise(f"algorithm.name is {name!r}, in which clients have no part")
        return half

    def pull(
        self,
        session_token: str,
        model: pb.ModelRef,
        trainer: Trainer,
        check_wanted: Callable[[], None],
        payload_name: str = "",
    ) -> PulledModel:
        """Return a model, or what is beside it by a name, pulled once for all of the process.

        Raises:
            BrokenPromise: it is larger than the task's model, so no memory is taken for it; or it
                has other tensors.
        """
        wanted = Digest(model.digest.blake3, model.digest.size_bytes)
        most = trainer.model_size_bytes + _HEADER_ALLOWANCE
        if wanted.size_bytes > most:
            raise RunFailed(
                f"the server's model has {wanted.size_bytes} bytes, the task's model here at most "
                f"{most}; install the server's version of the task"
            )
        with self._pulling:
            held = self._pulled.get(payload_name)
            if held is None or held[0] != wanted:
                held = None
                self._pulled.pop(payload_name, None)
                payload = self._take_spare(wanted.size_bytes)
                self.connection.pull(session_token, model, payload, check_wanted, payload_name)
                held = (wanted, PulledModel(payload, _tensors(payload)))
                self._pulled[payload_name] = held
            try:
                trainer.roles.check(held[1].tensors)
            except TensorError as error:
                raise BrokenPromise(f"it sent tensors of another model: {error}") from error
            return held[1]

    def update_of(self, base: PulledModel) -> memoryview:
        """Return the bytes for an update of `base`: its own, if no other client may need it."""
        if len(self._partitions) > 1:
            payload = self._take_spare(len(base.payload))
            copy_header(base.payload, payload)
            return payload
        with self._pulling:
            self._pulled.pop("", None)
        return base.payload

    def give_back(self, payload: memoryview) -> None:
        """Let the bytes of a pushed update be used again."""
        self._spare = payload

    def _take_spare(self, size: int) -> memoryview:
        with self._sparing:
            spare, self._spare = self._spare, None
        return spare if spare is not None and len(spare) == size else allocate(size)


@dataclass(eq=False)
class Runner:
    """One client: a partition, an id, and its session while it has one."""

    context: ProcessContext
    client_id: str
    partition: int
    instance_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    session_token: str = ""
    run_id: str = ""
    # While it works, someone must renew the lease; a waiting poll does that by itself.
    busy: bool = False
    heartbeat_interval: float = 1.0
    last_beat: float = 0.0
    task_token: bytes = b""
    # Of the work done last; a server that gives it again has no use for what came of it.
    done_token: bytes = b""
    # Of the work in hand: when the server has no more use for it.
    deadline: float = math.inf
    pause_seconds: float = 0.0
    lost: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    unanswered: Pushable | None = field(default=None, repr=False)

    def run(self) -> None:
        """Take part until the run has ended.

        Raises:
            InputError: this client can't take part as it was started.
            RunFailed: the run failed, or this client can't go on.
            Stopped: the process is asked to end.
        """
        structlog.contextvars.bind_contextvars(client=self.client_id)
        while True:
            try:
                self._take_part()
                return
            except SessionLost:
                log.warning("session lost; joining again")
                self._pause()
            except RunEnded:
                log.info("the run has ended")
                return
            finally:
                self.busy, self.session_token = False, ""

    def beat(self) -> None:
        """Renew the lease, if it is time; learn if the work is unwanted, or the session gone."""
        token, task_token = self.session_token, self.task_token
        now = time.monotonic()
        if not (self.busy and token) or now - self.last_beat < self.heartbeat_interval:
            return
        self.last_beat = now
        try:
            if (
                self.context.connection.heartbeat(token, task_token)
                and task_token == self.task_token
            ):
                self.cancelled.set()
        except Superseded:
            # The next poll says so, too, and ends this client.
            self.cancelled.set()
        except FolkmootError:
            self.lost.set()

    def _pause(self) -> None:
        """Wait before the server is asked again, longer each time until there is work to do."""
        longer = max(_FIRST_PAUSE_SECONDS, 2 * self.pause_seconds)
        self.pause_seconds = min(longer, _LONGEST_PAUSE_SECONDS)
        self.context.stop.wait(self.pause_seconds)

    def _take_part(self) -> None:
        context, connection = self.context, self.context.connection
        joined = self._join()
        self.lost.clear()
        self.heartbeat_interval = joined.heartbeat_interval
        self.session_token, self.busy = joined.session_token, True
        if self.run_id not in ("", joined.run_id):
            log.warning("the server has another run now", run_id=joined.run_id, before=self.run_id)
        self.run_id = joined.run_id
        structlog.contextvars.bind_contextvars(run_id=joined.run_id)
        log.info("joined", task=joined.task.task_name, partition=self.partition)
        try:
            trainer, data = context.prepare(joined, self.partition)
            while True:
                self.busy, asked = False, time.monotonic()
                response = connection.poll(self.session_token, joined.max_poll_duration)
                self.busy = True
                if response.HasField("run_end"):
                    raise _ending(response.run_end)
                if response.HasField("assignment"):
                    self._work(response.assignment, Means(trainer, data, joined))
                elif time.monotonic() - asked < _LEAST_WAIT_SECONDS:
                    self._pause()
        except (RunEnded, InputError, RunFailed) as error:
            connection.leave(self.session_token, type(error).__name__)
            raise

    def _join(self) -> Session:
        """Join, one client of the process after the other.

        What the server refuses in one of them ends them all, before another takes part in a round.
        """
        context = self.context
        request = pb.JoinRequest(
            client_id=self.client_id,
            instance_id=self.instance_id,
            task_names=context.task_names,
            partition=self.partition,
            client_version=__version__,
            join_token=context.join_token,
        )
        with context.joining:
            try:
                return context.connection.join(request)
            except InputError:
                context.stop.set()
                raise

    def _work(self, assignment: pb.TaskAssignment, means: Means) -> None:
        self.cancelled.clear()
        self.task_token = assignment.task_token
        self.deadline = math.inf
        if assignment.HasField("time_remaining"):
            self.deadline = time.monotonic() + seconds_of(assignment.time_remaining)
        structlog.contextvars.bind_contextvars(round=assignment.round)
        try:
            if self.task_token == self.done_token:
                self._pause()
            self._check_wanted()
            if assignment.WhichOneof("work") == "train":
                self._train(assignment, means)
            else:
                self._evaluate(assignment, means)
            if self.task_token != self.done_token:
                self.pause_seconds = 0.0
            self.done_token = self.task_token
        except WorkLost as lost:
            log.info("work is not wanted any more", why=str(lost))
            self.done_token = self.task_token
        except WorkFailed as error:
            log.warning("work failed", reason=error.reason, message=str(error))
            self._report_failure(error.reason, str(error))
            self._pause()
        except LimitExceeded as error:
            self._report_failure("LIMIT_EXCEEDED", str(error))
            raise
        except FolkmootError:
            raise
        except Exception as error:  # the task's own code, which may raise anything
            log.exception("the task's code failed")
            self._report_failure("TASK_RAISED", type(error).__name__)
            raise RunFailed(f"the task's code raised {describe(error)}") from error
        finally:
            self.task_token = b""
            structlog.contextvars.unbind_contextvars("round")

    def _train(self, assignment: pb.TaskAssignment, means: Means) -> None:
        context, ready = self.context, self.unanswered
        work = (assignment.task_token, assignment.model.digest.blake3, assignment.seed)
        if ready is None or ready.work != work:
            self.unanswered = None
            ready = self.unanswered = self._trained(assignment, means, work)
        means.session.bounds.check_metrics(ready.trained.metrics)
        with self._span("push", assignment) as span:
            response = context.connection.push(
                self.session_token,
                assignment.task_token,
                assignment.model,
                ready.payload,
                ready.digest,
                ready.trained,
                self._check_wanted,
                means.session.max_chunk_size_bytes,
            )
            outcome = pb.PushUpdateResponse.Outcome.Name(response.outcome).removeprefix("OUTCOME_")
            span.note(outcome=outcome, bytes=ready.digest.size_bytes)
        self.unanswered = None
        context.give_back(ready.payload)
        why = {"why": response.message} if response.message else {}
        log.info("pushed", outcome=outcome, bytes=ready.digest.size_bytes, **why)

    def _trained(
        self, assignment: pb.TaskAssignment, means: Means, work: tuple[bytes, str, int]
    ) -> Pushable:
        """Pull the model and train it."""
        context, (trainer, data, session) = self.context, means
        session.bounds.check_examples(len(data.train.inputs))
        name, scalars = algorithm_of(assignment.train)
        kind = context.client_half(name) if name else None
        with self._span("pull", assignment):
            base = self._pull(assignment.model, trainer)
            beside = self._beside(kind.payloads if kind else (), assignment, trainer)
        payload = context.update_of(base)
        session.bounds.check_size(len(payload))
        config, update = train_config(assignment.train), views(payload)
        with (
            context.turn,
            context.progress.of(self.client_id, assignment.round) as advance,
            self._span("train", assignment) as span,
        ):
            self._check_wanted()
            began = time.monotonic()
            half = None
            if kind is not None:
                kept = self._own(kind.keeps, assignment, trainer)
                half = kind(ClientRound(scalars, beside, kept, config, trainer.roles.trainable))
            trained = trainer.train(
                self._with_own_layers(base, assignment, trainer),
                update,
                data,
                config,
                assignment.seed,
                self._on_step(advance),
                half,
            )
            self._check_norm(update, session.bounds)
            if half is not None:
                previous = assignment.previous_round
                self._state(half.keeps).save(assignment.round, half.kept, previous)
            if trainer.initial_layers:
                own_layers, previous = trainer.own_layers(), assignment.previous_round
                self._state("layers").save(assignment.round, own_layers, previous)
            steps = int(trained.scalars[NUM_STEPS])
            span.note(examples=trained.num_examples, steps=steps)
        log.info(
            "trained",
            examples=trained.num_examples,
            seconds=round(time.monotonic() - began, 2),
            **{name: round(value, 4) for name, value in trained.metrics.items()},
        )
        payload = _ENCODING.encode(payload)
        return Pushable(work=work, payload=payload, digest=digest_bytes(payload), trained=trained)

    def _check_norm(self, update: Mapping[str, torch.Tensor], bounds: Bounds) -> None:
        """Check the L2 norm of an update, if the server has a limit.

        Raises:
            WorkFailed: it is longer.
        """
        most = bounds.max_update_norm
        if math.isfinite(most) and (norm := check_finite(update)) > most:
            message = (
                f"the update's L2 norm is {norm:.6g}, the limit is {most:g} (the server's "
                "--max-update-norm); a smaller --lr may help"
            )
            raise WorkFailed("UPDATE_TOO_LONG", message)

    def _pull(self, model: pb.ModelRef, trainer: Trainer, payload_name: str = "") -> PulledModel:
        token, check_wanted = self.session_token, self._check_wanted
        return self.context.pull(token, model, trainer, check_wanted, payload_name)

    def _beside(
        self, names: Iterable[str], assignment: pb.TaskAssignment, trainer: Trainer
    ) -> dict[str, Tensors]:
        """Return those payloads of these names that the server has, pulled."""
        version, offered = assignment.model.version, assignment.train.algorithm.payloads
        models = {
            name: pb.ModelRef(version=version, digest=offered[name])
            for name in names
            if name in offered
        }
        return {name: self._pull(model, trainer, name).tensors for name, model in models.items()}

    def _with_own_layers(
        self, model: PulledModel, assignment: pb.TaskAssignment, trainer: Trainer
    ) -> dict[str, torch.Tensor]:
        """Return a model's tensors with those that stay here, as they were when last counted."""
        if not trainer.initial_layers:
            return model.tensors
        own = self._own("layers", assignment, trainer)
        return model.tensors | trainer.initial_layers | (own or {})

    def _own(
        self, name: str, assignment: pb.TaskAssignment, trainer: Trainer
    ) -> dict[str, torch.Tensor] | None:
        """Return what was kept when the server last counted an update of this client.

        None: it is lost, or of another model, as where the task was changed since.
        """
        kept = self._state(name).load(assignment.previous_round)
        if kept is not None and not trainer.has(kept):
            log.warning("what was kept is of another model", round=assignment.previous_round)
            return None
        return kept

    def _state(self, name: str) -> ClientState:
        return ClientState(self.context.state_dir, self.run_id, f"{self.client_id}-{name}")

    def _evaluate(self, assignment: pb.TaskAssignment, means: Means) -> None:
        context, (trainer, data, session) = self.context, means
        with self._span("pull", assignment):
            base = self._pull(assignment.model, trainer)
        work = assignment.evaluate
        with (
            context.turn,
            context.progress.of(self.client_id, assignment.round) as advance,
            self._span("evaluate", assignment),
        ):
            self._check_wanted()
            num_examples, metrics = trainer.evaluate(
                self._with_own_layers(base, assignment, trainer),
                data,
                train_config(work.fine_tune) if work.HasField("fine_tune") else None,
                assignment.seed,
                self._on_step(advance),
            )
        session.bounds.check_examples(num_examples)
        session.bounds.check_metrics(metrics)
        report = pb.EvaluationReport(num_examples=num_examples, metrics=metrics)
        context.connection.report(
            pb.ReportTaskResultRequest(
                session_token=self.session_token,
                task_token=assignment.task_token,
                evaluation=report,
            )
        )

    def _span(self, name: str, assignment: pb.TaskAssignment) -> tracing.Span:
        return tracing.span(name, assignment.traceparent, client=self.client_id)

    def _report_failure(self, reason: str, message: str) -> None:
        failure = pb.TaskFailure(reason=reason, message=message[:1024])
        request = pb.ReportTaskResultRequest(
            session_token=self.session_token, task_token=self.task_token, failure=failure
        )
        with suppress(WorkLost):  # The round is over anyhow.
            self.context.connection.report(request)

    def _check_wanted(self) -> None:
        if self.context.stop.is_set():
            raise Stopped("asked to end")
        if self.lost.is_set():
            raise SessionLost("the session is gone")
        if self.cancelled.is_set():
            raise WorkLost("the server cancelled it")
        if time.monotonic() > self.deadline:
            raise WorkLost("the round's deadline has passed")

    def _on_step(self, advance: Callable[[int, int], None]) -> OnStep:
        def on_step(done: int, total: int) -> None:
            self._check_wanted()
            advance(done, total)

        return on_step


def _tensors(payload: memoryview) -> dict[str, torch.Tensor]:
    try:
        return views(payload)
    except TensorError as error:
        raise BrokenPromise(f"what it sent as a model is none: {error}") from error


def _ending(end: pb.RunEnd) -> FolkmootError:
    if end.failure_message:
        return RunFailed(f"the run failed: {printable(end.failure_message, MOST_TEXT)}")
    return RunEnded("the run has ended")
