"""Malformed calls of every method of a server, and the outcomes that are documented for each.

Draws calls; knows nothing about sending them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from common.tensors import digest_bytes
from common.transfer import pieces
from protos import federated_pb2 as pb
from scripts.resilience.malformed import damaged, hostile_file, wrong_values
from scripts.testbed.servers import TASK

COORDINATOR, _ADMIN = "/federated.v1.Coordinator/", "/federated.v1.Admin/"
_HEALTH = "/grpc.health.v1.Health/"
_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
PUSH = COORDINATOR + "PushUpdate"
JOIN = COORDINATOR + "Join"
_STOP = _ADMIN + "StopRun"
_PATIENCE = 30.0
# Deadlines that an open stream runs into; a poll needs 2 s.
_SHORT, _POLL = [0.05, 0.1], [0.05, 2.1]

_SESSION = {"NOT_FOUND SESSION_UNKNOWN", "ABORTED SESSION_SUPERSEDED"}
_NO_OPERATOR = "UNAUTHENTICATED OPERATOR_TOKEN_INVALID"
_NO_TOKENS = "FAILED_PRECONDITION JOIN_TOKENS_UNUSED"
# gRPC's own: a message of more than a chunk and its frame.
_ANYWHERE = {
    "OK",
    "INVALID_ARGUMENT FIELD_INVALID",
    "INVALID_ARGUMENT MESSAGE_INVALID",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE REQUEST_UNFINISHED",
    "cancelled by us",
}
# gRPC's own: no such method, or a stream that ends before the one message of a request.
UNKNOWN_METHOD = {"UNIMPLEMENTED", "INVALID_ARGUMENT MESSAGE_INVALID"}

# Of an upload: federated.proto says that a status can reach a caller so that still writes.
BROKEN_OFF = "INTERNAL at the caller, which still wrote"


class Method(NamedTuple):
    """A method: its kind, as channels name it, and its own documented outcomes."""

    kind: str
    outcomes: frozenset[str]

    def documents(self, outcome: str) -> bool:
        """Say whether this outcome of a call is documented."""
        return outcome in self.outcomes or outcome in _ANYWHERE


def _method(kind: str, *outcomes: str) -> Method:
    return Method(kind, frozenset(outcomes))


METHODS = {
    JOIN: _method(
        *("unary_unary", "INVALID_ARGUMENT TASK_MISMATCH"),
        *("INVALID_ARGUMENT PARTITION_OUT_OF_RANGE", "FAILED_PRECONDITION PARTITION_TAKEN"),
        *("RESOURCE_EXHAUSTED JOINING_PACED", "FAILED_PRECONDITION RUN_ENDED"),
    ),
    COORDINATOR + "Heartbeat": _method("unary_unary", *_SESSION),
    COORDINATOR + "Leave": _method("unary_unary"),
    COORDINATOR + "PollTaskAssignment": _method(
        *("unary_unary", *_SESSION, "INVALID_ARGUMENT DEADLINE_TOO_SHORT", "DEADLINE_EXCEEDED"),
    ),
    COORDINATOR + "PullModel": _method(
        *("unary_stream", *_SESSION),
        *("NOT_FOUND MODEL_UNKNOWN", "OUT_OF_RANGE READ_OFFSET_TOO_LARGE"),
        "RESOURCE_EXHAUSTED PULLS_EXCEEDED",
    ),
    PUSH: _method(
        *("stream_unary", *_SESSION, BROKEN_OFF, "INVALID_ARGUMENT HEADER_MISSING"),
        *(f"OK {name}" for name in pb.PushUpdateResponse.Outcome.keys()[1:]),
    ),
    COORDINATOR + "GetUpload": _method("unary_unary", *_SESSION, "NOT_FOUND ASSIGNMENT_UNKNOWN"),
    COORDINATOR + "ReportTaskResult": _method(
        "unary_unary", *_SESSION, "ABORTED ROUND_CLOSED", "INVALID_ARGUMENT WORK_MISMATCH"
    ),
    _ADMIN + "GetRun": _method("unary_unary", _NO_OPERATOR),
    _ADMIN + "ListRounds": _method("unary_unary", _NO_OPERATOR),
    _ADMIN + "ListClients": _method("unary_unary", _NO_OPERATOR),
    _ADMIN + "WatchRun": _method("unary_stream", "DEADLINE_EXCEEDED", _NO_OPERATOR),
    _STOP: _method("unary_unary", _NO_OPERATOR),
    _ADMIN + "CreateJoinToken": _method("unary_unary", _NO_TOKENS, _NO_OPERATOR),
    _ADMIN + "ListJoinTokens": _method("unary_unary", _NO_TOKENS, _NO_OPERATOR),
    _ADMIN + "RevokeJoinToken": _method("unary_unary", _NO_TOKENS, _NO_OPERATOR),
    # The health service has NOT_FOUND for a service that it does not know.
    _HEALTH + "Check": _method("unary_unary", "NOT_FOUND"),
    # Not served: anyone could hold it.
    _HEALTH + "Watch": _method("unary_stream", "UNIMPLEMENTED", "DEADLINE_EXCEEDED"),
    _REFLECTION: _method("stream_stream", "DEADLINE_EXCEEDED"),
}


class Call(NamedTuple):
    """A call to make: its messages as bytes, and when to give it up.

    Args:
        responses: after so many the call is cancelled; None: read to the end.
        cut: cancel instead of ending the stream of requests.
        authorized: show the operator's token to Admin.
    """

    path: str
    kind: str
    messages: list[bytes]
    deadline: float = _PATIENCE
    responses: int | None = None
    cut: bool = False
    authorized: bool = True

    @property
    def is_admin(self) -> bool:
        """Say whether it is for the operators' port."""
        return self.path.startswith(_ADMIN)


@dataclass
class Caller:
    """A client that behaves otherwise: what it holds, and what it knows of others."""

    name: str
    partition: int
    model: bytes
    session: str = ""
    assignment: pb.TaskAssignment | None = None

    @property
    def task_token(self) -> bytes:
        """The token of its work."""
        return self.assignment.task_token if self.assignment else b"0" * 32


def draw(rng: random.Random, caller: Caller, others: Sequence[Caller]) -> Call:
    """Return a call, most likely a malformed one, by `caller`."""
    if rng.random() < 0.03:
        return _unknown_method(rng)
    path = rng.choice([*METHODS, PUSH, PUSH])
    kind = METHODS[path].kind
    other = rng.choice(others)
    texts = [other.session, other.name, other.task_token.decode(), caller.session, TASK]
    if path == PUSH:
        return Call(path, kind, _push(rng, caller, texts), cut=rng.random() < 0.15)
    right = _right(rng, caller, path)
    data = _spoil(rng, right, _right(rng, caller, rng.choice(_PLAIN)), texts)
    if path == _STOP:
        data = _undecodable(data)
    deadline, responses = _PATIENCE, None
    if path.endswith(("PollTaskAssignment", "Watch", "WatchRun")):
        deadline = rng.choice(_POLL if kind == "unary_unary" else _SHORT)
    if kind == "unary_stream":
        responses = rng.choice([0, 1, 2] if path.endswith("Watch") else [0, 1, 2, None])
    if path.endswith("WatchRun"):
        responses = rng.choice([0, 1])
    return Call(path, kind, [data], deadline, responses, authorized=rng.random() < 0.9)


def _right(rng: random.Random, caller: Caller, path: str) -> Message:
    """Return a request as it should be."""
    session, token = caller.session, caller.task_token
    requests: dict[str, Callable[[], Message]] = {
        "Join": lambda: pb.JoinRequest(
            client_id=caller.name,
            instance_id="fuzz",
            task_names=[TASK],
            partition=caller.partition,
            client_version="0",
        ),
        "Heartbeat": lambda: pb.HeartbeatRequest(session_token=session, task_token=token),
        "Leave": lambda: pb.LeaveRequest(session_token="none", reason="fuzz"),  # noqa: S106
        "PollTaskAssignment": lambda: pb.PollTaskAssignmentRequest(session_token=session),
        "PullModel": lambda: pb.PullModelRequest(
            session_token=session, read_offset=rng.choice([0, 1, len(caller.model)])
        ),
        "GetUpload": lambda: pb.GetUploadRequest(session_token=session, task_token=token),
        "ReportTaskResult": lambda: pb.ReportTaskResultRequest(
            session_token=session,
            task_token=token,
            evaluation=pb.EvaluationReport(num_examples=1, metrics={"loss": 1.0}),
        ),
        "GetRun": pb.GetRunRequest,
        "ListRounds": lambda: pb.ListRoundsRequest(page_size=2, page_token="1"),  # noqa: S106
        "ListClients": lambda: pb.ListClientsRequest(page_size=2, page_token="a"),  # noqa: S106
        "WatchRun": lambda: pb.WatchRunRequest(keepalive_interval=Duration(seconds=1)),
        "StopRun": pb.StopRunRequest,
        "CreateJoinToken": lambda: pb.CreateJoinTokenRequest(lifetime=Duration(seconds=1)),
        "ListJoinTokens": pb.ListJoinTokensRequest,
        "RevokeJoinToken": lambda: pb.RevokeJoinTokenRequest(token_id="none"),  # noqa: S106
        "Check": health_pb2.HealthCheckRequest,
        "Watch": health_pb2.HealthCheckRequest,
        "ServerReflectionInfo": lambda: reflection_pb2.ServerReflectionRequest(list_services=""),
    }
    return requests[path.rpartition("/")[2]]()


_PLAIN = [path for path in METHODS if path != PUSH]


def _spoil(rng: random.Random, right: Message, other: Message, texts: Sequence[str]) -> bytes:
    kind = rng.random()
    if kind < 0.5:
        return wrong_values(rng, right, texts)
    if kind < 0.95:
        return damaged(rng, right.SerializeToString(), other.SerializeToString())
    return rng.randbytes(rng.choice([1, 10, 1000]))


def _undecodable(data: bytes) -> bytes:
    try:
        pb.StopRunRequest.FromString(data)
    except DecodeError:
        return data
    return data + b"\xff"


def _unknown_method(rng: random.Random) -> Call:
    nowhere = ["/", "//", "/x", "/x/y", JOIN + "2", JOIN.lower(), "/" + "x" * 5000 + "/y"]
    # A method of the other port's service, and one without the request that it needs.
    path = rng.choice([*nowhere, COORDINATOR + "GetRun", ""])
    kind = rng.choice(["unary_unary", "stream_unary", "unary_stream"])
    if path:
        return Call(path, kind, [rng.randbytes(20)])
    unary = [name for name, method in METHODS.items() if method.kind.startswith("unary")]
    return Call(rng.choice(unary), "stream_unary", [], deadline=0.3)


def _push(rng: random.Random, caller: Caller, texts: Sequence[str]) -> list[bytes]:
    """Return the messages of a bad upload."""
    data = hostile_file(rng, caller.model) if rng.random() < 0.6 else caller.model
    digest = digest_bytes(data)
    header = pb.PushUpdateHeader(
        session_token=caller.session,
        task_token=caller.task_token,
        base_model=caller.assignment.model if caller.assignment else None,
        digest=pb.Digest(blake3=digest.blake3, size_bytes=digest.size_bytes),
        num_examples=1,
        metrics={"loss": 1.0},
    )
    first = pb.PushUpdateRequest(header=header)
    size = rng.choice([1000, 4096, 1 << 20])
    chunks = [
        pb.Chunk(offset=o, data=bytes(d), finish_write=last)
        for o, d, last in pieces(memoryview(data), size=size)
    ]
    _disarrange(rng, chunks)
    parts: list[Any] = [first, *(pb.PushUpdateRequest(chunk=chunk) for chunk in chunks)]
    kind = rng.randrange(8)
    if kind == 0:
        del parts[0]
    elif kind == 1:
        parts.insert(rng.randrange(1, len(parts) + 1), first)
    elif kind == 2:
        parts.reverse()
    messages = [part.SerializeToString() for part in parts]
    if kind == 3:
        messages[0] = wrong_values(rng, first, texts)
    elif kind == 5:
        at = rng.randrange(len(messages))
        messages[at] = damaged(rng, messages[at], messages[0])
    elif kind == 6:
        del messages[rng.randrange(1, len(messages) + 1) :]
    return messages


def _disarrange(rng: random.Random, chunks: list[pb.Chunk]) -> None:
    """Make one thing about the chunks wrong, or nothing."""
    chunk = rng.choice(chunks)
    match rng.randrange(9):
        case 0:
            chunk.offset += rng.choice([1, -1, 7, 1 << 62])
        case 1:
            chunk.offset = rng.choice([-1, -(1 << 63), (1 << 63) - 1])
        case 2:
            chunks.append(chunk)
        case 3:
            chunks.append(chunks[-1])
        case 4:
            chunk.data = bytes(rng.choice([0, 1 << 20, 2 << 20, 5 << 20]))
        case 5:
            chunk.finish_write = not chunk.finish_write
        case 6:
            chunk.data = bytes(reversed(chunk.data))
        case _:
            pass
