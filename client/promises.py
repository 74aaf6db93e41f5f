"""What a server says, checked against federated.proto before a client acts on it.

The only place that looks at a server's numbers, names and texts: what comes out of it is within
its bounds. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from common.bounds import BLAKE3, MAX_METRIC_NAME, MAX_METRICS, MAX_TOKEN
from common.errors import InputError, RunFailed
from common.printable import printable
from common.splits import Partitioner, Split
from common.training import Hyperparameter, TrainConfig
from protos import federated_pb2 as pb

MOST_TEXT = 1000
_MOST_RUN_ID = 255
_MOST_NAME = 256
_LEAST_CHUNK_BYTES = 1024
_LEAST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 1.0, 60.0
# A lease must survive a heartbeat that is late or lost.
_BEATS_PER_LEASE = 3
_MOST_PARTITIONS = 1_000_000
_MOST_EPOCHS = 1_000_000
_MOST_INT64 = 2**63 - 1


class BrokenPromise(RunFailed):
    """The server said what federated.proto rules out."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the server breaks its contract: {problem}; is it a Folkmoot server?")


class LimitExceeded(RunFailed):
    """What this client has is more than the server announced to take."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What the server refuses to take.

    The checks raise LimitExceeded.

    Args:
        max_update_norm: L2, of all values; infinity: any finite one.
        max_metric_name_length: in characters.
    """

    max_update_size_bytes: int
    max_num_examples: int
    max_update_norm: float
    max_metrics: int
    max_metric_name_length: int

    def check_examples(self, count: int) -> None:
        """Check how many examples an update or a report is to count for."""
        if count > self.max_num_examples:
            raise LimitExceeded(
                f"this client holds {count} examples, and the server takes at most "
                f"{self.max_num_examples} (its --max-examples)"
            )

    def check_size(self, size_bytes: int) -> None:
        """Check the size of an update's file."""
        if size_bytes > self.max_update_size_bytes:
            raise LimitExceeded(
                f"an update has {size_bytes} bytes, and the server takes at most "
                f"{self.max_update_size_bytes}; its model is not the task's here"
            )

    def check_metrics(self, metrics: Mapping[str, float]) -> None:
        """Check what a task's own training or evaluation reports."""
        if len(metrics) > self.max_metrics:
            raise LimitExceeded(
                f"the task reports {len(metrics)} metrics, and the server takes at most "
                f"{self.max_metrics}; report fewer"
            )
        for name in metrics:
            if not 1 <= len(name) <= self.max_metric_name_length:
                raise LimitExceeded(
                    f"the task reports a metric {name!r}, and the server takes names of 1 to "
                    f"{self.max_metric_name_length} characters; name it otherwise"
                )


@dataclass(frozen=True, kw_only=True)
class Session:
    """What Join grants and announces; durations are seconds."""

    session_token: str
    run_id: str
    heartbeat_interval: float
    max_poll_duration: float
    max_chunk_size_bytes: int
    bounds: Bounds
    task: pb.TaskSpec
    split: Split


def session_of(response: pb.JoinResponse, willing: Collection[str]) -> Session:
    """Return what a server answered to Join.

    Args:
        response: the answer.
        willing: the names of the tasks that this client was started for.

    Raises:
        InputError: the server has another task, or divides the data in an unknown way.
        BrokenPromise: a value out of its bounds.
    """
    task = response.task
    if task.task_name not in willing:
        raise InputError(
            f"--task: the server trains {printable(task.task_name, _MOST_NAME)!r}, which this "
            "client was not started for; if you trust that code, start it with that --task"
        )
    _check_text("session_token", response.session_token, MAX_TOKEN)
    _check_text("run_id", response.run_id, _MOST_RUN_ID)
    _check_text("model_name", task.model_name, _MOST_NAME)
    lease = _seconds("lease_duration", response.lease_duration, least=1.0)
    beat = _seconds("heartbeat_interval", response.heartbeat_interval, least=0.1)
    poll = _seconds("max_poll_duration", response.max_poll_duration, least=_LEAST_POLL_SECONDS)
    chunk = _whole("max_chunk_size_bytes", response.max_chunk_size_bytes, _LEAST_CHUNK_BYTES)
    return Session(
        session_token=response.session_token,
        run_id=response.run_id,
        heartbeat_interval=min(beat, lease / _BEATS_PER_LEASE),
        max_poll_duration=min(poll, _LONGEST_POLL_SECONDS),
        max_chunk_size_bytes=chunk,
        bounds=_bounds(response),
        task=task,
        split=split_of(task.split),
    )


def _bounds(response: pb.JoinResponse) -> Bounds:
    limits, announced = response.limits, response.HasField("limits")
    return Bounds(
        max_update_size_bytes=_whole(
            "max_update_size_bytes", response.max_update_size_bytes, least=1
        ),
        max_num_examples=(
            _whole("max_num_examples", limits.max_num_examples, least=1)
            if announced
            else _MOST_INT64
        ),
        max_update_norm=_number("max_update_norm", limits.max_update_norm) or math.inf,
        max_metrics=_whole("max_metrics", limits.max_metrics) if announced else MAX_METRICS,
        max_metric_name_length=(
            _whole("max_metric_name_length", limits.max_metric_name_length)
            if announced
            else MAX_METRIC_NAME
        ),
    )


def split_of(message: pb.DataSplit) -> Split:
    """Return the split that a server announced.

    Raises:
        InputError: this version of the client does not know the partitioner.
        BrokenPromise: a number out of its bounds.
    """
    names = pb.DataSplit.Partitioner
    number = message.partitioner
    name = names.Name(number) if number in names.values() else str(number)
    partitioner = Partitioner.__members__.get(name.removeprefix("PARTITIONER_"))
    if partitioner is None:
        raise InputError(
            f"the server divides the data by {name}, which this client can't; install the "
            "server's version of Folkmoot"
        )
    by_alpha = partitioner in (Partitioner.DIRICHLET, Partitioner.QUANTITY)
    return Split(
        partitioner=partitioner,
        num_partitions=_whole("num_partitions", message.num_partitions, 1, _MOST_PARTITIONS),
        alpha=_number("alpha", message.alpha, above=0.0) if by_alpha else message.alpha,
        shards_per_client=(
            _whole("shards_per_client", message.shards_per_client, least=1)
            if partitioner is Partitioner.SHARDS
            else message.shards_per_client
        ),
        seed=_whole("seed of the split", message.seed),
        validation_fraction=_number("validation_fraction", message.validation_fraction, below=1.0),
    )


def check_poll(response: pb.PollTaskAssignmentResponse) -> None:
    """Check an answer to a poll: its assignment, if it has one.

    Raises:
        BrokenPromise: a value out of its bounds, or a kind of work that nobody knows.
    """
    if not response.HasField("assignment"):
        return
    assignment = response.assignment
    _check_text("task_token", assignment.task_token, MAX_TOKEN)
    _whole("round", assignment.round, least=1)
    _whole("previous_round", assignment.previous_round, most=assignment.round)
    _whole("seed", assignment.seed)
    _whole("model.version", assignment.model.version)
    _check_digest("model.digest", assignment.model.digest)
    match assignment.WhichOneof("work"):
        case "train":
            train_config(assignment.train)
            algorithm_of(assignment.train)
        case "evaluate":
            if assignment.evaluate.HasField("fine_tune"):
                train_config(assignment.evaluate.fine_tune)
        case None:
            raise BrokenPromise("work is none of those that this client knows")


def train_config(message: pb.TrainWork) -> TrainConfig:
    """Return the configuration in an assignment.

    Raises:
        BrokenPromise: a number out of its bounds.
    """
    return TrainConfig(
        local_epochs=_whole("local_epochs", message.local_epochs, 1, _MOST_EPOCHS),
        batch_size=_whole("batch_size", message.batch_size, least=1),
        learning_rate=_number("learning_rate", message.learning_rate, above=0.0),
        momentum=_number("momentum", message.momentum, below=1.0),
        weight_decay=_number("weight_decay", message.weight_decay),
        proximal_mu=_number("proximal_mu", message.proximal_mu),
        hyperparameters=hyperparameters_of(message.hyperparameters),
    )


def algorithm_of(message: pb.TrainWork) -> tuple[str, dict[str, Hyperparameter]]:
    """Return the name and the scalars of the algorithm in which clients have a part; "": none.

    Raises:
        BrokenPromise: a name, a number or a payload's digest out of its bounds.
    """
    if not message.HasField("algorithm"):
        return "", {}
    asked = message.algorithm
    _check_text("algorithm.name", asked.name, _MOST_NAME)
    _whole("algorithm.scalars' number", len(asked.scalars.fields), most=MAX_METRICS)
    for name, digest in asked.payloads.items():
        _check_digest(f"algorithm.payloads: {printable(name, MAX_METRIC_NAME)!r}", digest)
    return asked.name, hyperparameters_of(asked.scalars, "algorithm.scalars")


def hyperparameters_of(
    message: Struct, field: str = "hyperparameters"
) -> dict[str, Hyperparameter]:
    """Return hyperparameters; their numbers are floats.

    Raises:
        BrokenPromise: one is no finite number, string or boolean.
    """
    for name, value in message.fields.items():
        shown = printable(name, _MOST_NAME)
        if value.WhichOneof("kind") not in ("number_value", "string_value", "bool_value"):
            raise BrokenPromise(f"{field}: {shown!r} is no number, string or boolean")
        if not math.isfinite(value.number_value):
            raise BrokenPromise(f"{field}: {shown!r} is not finite")
    found: dict[str, Hyperparameter] = MessageToDict(message)
    return found


def check_push(response: pb.PushUpdateResponse) -> None:
    """Check an answer to an upload.

    Raises:
        BrokenPromise: an outcome that nobody knows, or less than nothing held.
    """
    outcomes = pb.PushUpdateResponse
    known = set(outcomes.Outcome.values()) - {outcomes.OUTCOME_UNSPECIFIED}
    if response.outcome not in known:
        raise BrokenPromise(f"outcome {response.outcome} is none that this client knows")
    check_upload(response.upload)


def check_upload(upload: pb.Upload) -> None:
    """Check how much of an upload the server says to hold.

    Raises:
        BrokenPromise: less than nothing.
    """
    _whole("committed_size_bytes", upload.committed_size_bytes)


def seconds_of(duration: Duration) -> float:
    """Return a duration in seconds; any that can be sent."""
    return float(duration.seconds) + duration.nanos / 1e9


def _seconds(field: str, duration: Duration, least: float) -> float:
    seconds = seconds_of(duration)
    if not seconds >= least:
        raise BrokenPromise(f"{field} is {seconds:g} s, and must be {least:g} s or more")
    return seconds


def _whole(field: str, value: int, least: int = 0, most: int = _MOST_INT64) -> int:
    if not least <= value <= most:
        bound = f"{least} or more" if most == _MOST_INT64 else f"{least} to {most}"
        raise BrokenPromise(f"{field} is {value}, and must be {bound}")
    return value


def _number(
    field: str, value: float, *, above: float = -math.inf, below: float = math.inf
) -> float:
    """Return a finite number that is not negative, and between the bounds."""
    if not (math.isfinite(value) and value >= 0 and above < value < below):
        least = f"more than {above:g}" if above >= 0 else "0 or more"
        bound = f"{least} and less than {below:g}" if math.isfinite(below) else least
        raise BrokenPromise(f"{field} is {value:g}, and must be {bound}")
    return value


def _check_text(field: str, value: str | bytes, most: int) -> None:
    if not 1 <= len(value) <= most:
        raise BrokenPromise(f"{field} has {len(value)} characters, and must have 1 to {most}")


def _check_digest(field: str, digest: pb.Digest) -> None:
    _whole(f"{field}.size_bytes", digest.size_bytes, least=1)
    if not BLAKE3.fullmatch(digest.blake3):
        raise BrokenPromise(f"{field}.blake3 is not 64 lower-case hexadecimal digits")
