"""The client's side of the wire: one channel, calls that are tried again, resumable transfers.

Turns statuses into this file's few exceptions. Knows nothing about training.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from client.promises import (
    MOST_TEXT,
    Session,
    check_poll,
    check_push,
    check_upload,
    seconds_of,
    session_of,
)
from common.errors import FolkmootError, InputError, RunFailed
from common.logs import get_logger
from common.printable import printable
from common.tensors import Digest
from common.training import Trained
from common.transfer import (
    CHUNK_SIZE_BYTES,
    DigestMismatch,
    OffsetMismatch,
    PayloadTooLong,
    Piece,
    Receiver,
    pieces,
)
from protos import federated_pb2 as pb
from protos import federated_pb2_grpc as pb_grpc
from protos.chunks import decode_message, encode_piece

log = get_logger()

R = TypeVar("R", bound=Message)

_FIRST_DELAY_SECONDS = 0.2
_LONGEST_DELAY_SECONDS = 5.0
_CALL_SECONDS = 20.0
_HEARTBEAT_SECONDS = 5.0
# So long one stream of a transfer may take; the next one goes on from there. It bounds how long
# a stream can hang, as when a byte of its framing was damaged.
_TRANSFER_SECONDS = 300.0
_DIGEST_ATTEMPTS = 3
# Each has one call at a time, and a server takes few at a time on one connection.
_THREADS_A_CHANNEL = 8
# As a lease may have; a server that is full asks for one.
_LONGEST_WAIT_SECONDS = 3600.0
_RETRIED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    # By a server that stops: what this side cancels, it does not wait for.
    grpc.StatusCode.CANCELLED,
}
# What gRPC says where the client refuses the handshake, and where the server does.
_UNTRUSTED = ("Tls handshake failed", "Hostname Verification Check failed")
_CLOSED = "Socket closed"
_CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without this, the answer to a keepalive's ping is awaited for a minute.
    ("grpc.http2.ping_timeout_ms", 10_000),
    # What may be on its way unread, and is lost when the connection breaks.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 19),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    # Otherwise all channels of a process share one connection.
    ("grpc.use_local_subchannel_pool", 1),
]


class Stopped(FolkmootError):
    """The process is asked to end."""


class SessionLost(FolkmootError):
    """The server does not know the session any more: join again."""


class Superseded(RunFailed):
    """Another process has taken this client's place; to join again would take it back."""


class WorkLost(FolkmootError):
    """The assignment is not wanted any more: poll."""


class RunEnded(FolkmootError):
    """The run has ended; there is nothing more to do."""


class NotStored(FolkmootError):
    """The server can't store an update now: send it again later."""


class StreamDamaged(FolkmootError):
    """A model's stream is not as federated.proto lays it out."""


class _Channel:
    """A channel, and the methods on it."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.channel = (
            grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
            if credentials is None
            else grpc.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)
        )
        self.stub = pb_grpc.CoordinatorStub(self.channel)
        service = "/" + pb.DESCRIPTOR.services_by_name["Coordinator"].full_name
        # The two that carry chunks, without the generated stub's copies of them.
        self.pull_model: grpc.UnaryStreamMultiCallable[
            pb.PullModelRequest, pb.PullModelResponse | Piece
        ] = self.channel.unary_stream(
            f"{service}/PullModel",
            pb.PullModelRequest.SerializeToString,
            lambda message: decode_message(message, pb.PullModelResponse),
        )
        self.push_update: grpc.StreamUnaryMultiCallable[bytes, pb.PushUpdateResponse] = (
            self.channel.stream_unary(
                f"{service}/PushUpdate", bytes, pb.PushUpdateResponse.FromString
            )
        )


class Connection:
    """The channels to one server, shared by the clients of a process.

    Args:
        address: HOST:PORT.
        credentials: for the server; None is plain text.
        max_wait: seconds to go on trying while the server can't be reached.
        stop: set when the process is asked to end; waiting calls end soon after `close`.
    """

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None,
        max_wait: float,
        stop: threading.Event,
    ) -> None:
        self._address = address
        self._max_wait = max_wait
        self._stop = stop
        self._credentials = credentials
        self._channels = [_Channel(address, credentials)]
        self._opening = threading.Lock()
        self._threads = itertools.count()
        self._place = threading.local()
        self._jitter = random.Random()
        # When the server was last heard of, by any thread.
        self._contact = 0.0

    def close(self) -> None:
        """End all calls, from any thread."""
        with self._opening:
            for channel in self._channels:
                channel.channel.close()

    @property
    def _channel(self) -> _Channel:
        """The channel of the calling thread."""
        if not hasattr(self._place, "channel"):
            with self._opening:
                number = next(self._threads) // _THREADS_A_CHANNEL
                if number == len(self._channels):
                    self._channels.append(_Channel(self._address, self._credentials))
                self._place.channel = self._channels[number]
        channel: _Channel = self._place.channel
        return channel

    # ------------------------------------------------------------------- calls

    def join(self, request: pb.JoinRequest) -> Session:
        """Join, waiting for a server that is not there yet.

        Raises:
            InputError: this client can't take part: another task, or a partition too many.
            BrokenPromise: the server announced what can't be.
            RunEnded: the run is over.
        """
        response = self._call(lambda: self._channel.stub.Join(request, timeout=_CALL_SECONDS))
        return session_of(response, request.task_names)

    def heartbeat(self, session_token: str, task_token: bytes) -> bool:
        """Renew the lease once, without trying again; return whether to cancel the work.

        Raises:
            SessionLost: the session is gone.
            Superseded: another process has it.
        """
        request = pb.HeartbeatRequest(session_token=session_token, task_token=task_token)
        try:
            return self._channel.stub.Heartbeat(
                request, timeout=_HEARTBEAT_SECONDS
            ).cancel_requested
        except grpc.RpcError as error:
            if error.code() in _RETRIED:
                return False
            raise self._translate(error) from error
        except ValueError:  # The channel was closed under the call.
            return False

    def leave(self, session_token: str, reason: str, timeout: float = 2.0) -> bool:
        """End the session; return whether the server heard it. If not, its lease ends it."""
        try:
            self._channel.stub.Leave(
                pb.LeaveRequest(session_token=session_token, reason=reason), timeout=timeout
            )
            return True
        except (grpc.RpcError, ValueError):
            return False

    def poll(self, session_token: str, longest: float) -> pb.PollTaskAssignmentResponse:
        """Wait for work for up to `longest` seconds.

        Raises:
            BrokenPromise: the work is none that can be done.
        """
        request = pb.PollTaskAssignmentRequest(session_token=session_token)
        # The server answers a second before the deadline; two more are for a slow network.
        timeout = longest + 3.0
        response = self._call(
            lambda: self._channel.stub.PollTaskAssignment(request, timeout=timeout)
        )
        check_poll(response)
        return response

    def report(self, request: pb.ReportTaskResultRequest) -> None:
        """Report an evaluation or a failure."""
        self._call(lambda: self._channel.stub.ReportTaskResult(request, timeout=_CALL_SECONDS))

    # ---------------------------------------------------------------- transfers

    def pull(
        self,
        session_token: str,
        model: pb.ModelRef,
        payload: memoryview,
        check_wanted: Callable[[], None],
        payload_name: str = "",
    ) -> None:
        """Fill `payload` with the safetensors bytes of a model, or of what is beside it by a name.

        Goes on after each broken stream, until `check_wanted` raises.

        Raises:
            WorkLost: the run has moved on.
            RunFailed: the bytes are not those of the digest, repeatedly.
        """
        expected = Digest(model.digest.blake3, model.digest.size_bytes)

        def store(offset: int, data: memoryview) -> None:
            payload[offset : offset + len(data)] = data

        receiver = Receiver(store, expected)

        def attempt() -> pb.PullModelRequest:
            check_wanted()
            request = pb.PullModelRequest(
                session_token=session_token,
                model_version=model.version,
                read_offset=receiver.offset,
                payload_name=payload_name,
            )
            call = self._channel.pull_model(request, timeout=_TRANSFER_SECONDS)
            try:
                for piece in _chunks(call):
                    receiver.write(piece.offset, piece.data)
                    self._contact = time.monotonic()
                    check_wanted()
            finally:
                call.cancel()
            return request

        for _ in range(_DIGEST_ATTEMPTS):
            try:
                self._call(attempt)
                receiver.finish()
                return
            except (StreamDamaged, OffsetMismatch, PayloadTooLong, DigestMismatch) as error:
                log.warning("pulled model is damaged; pulling again", problem=str(error))
                receiver.reset()
        raise RunFailed(f"model {model.version} came damaged {_DIGEST_ATTEMPTS} times")

    def push(
        self,
        session_token: str,
        task_token: bytes,
        base: pb.ModelRef,
        update: memoryview,
        digest: Digest,
        trained: Trained,
        check_wanted: Callable[[], None],
        chunk_size: int,
    ) -> pb.PushUpdateResponse:
        """Upload an update, resuming after each broken stream; return its final response.

        That is ACCEPTED, NOT_WANTED or INVALID. A stream that broke is resumed until `check_wanted`
        raises; no chunk has more than `chunk_size` bytes.

        Raises:
            RunFailed: the server never gets the right bytes.
        """
        header = pb.PushUpdateHeader(
            session_token=session_token,
            task_token=task_token,
            base_model=base,
            digest=pb.Digest(blake3=digest.blake3, size_bytes=digest.size_bytes),
            num_examples=trained.num_examples,
            metrics=trained.metrics,
            scalars=trained.scalars,
        )
        first = True

        def attempt() -> pb.PushUpdateResponse:
            nonlocal first
            if not first:
                check_wanted()
                request = pb.GetUploadRequest(session_token=session_token, task_token=task_token)
                upload = self._channel.stub.GetUpload(request, timeout=_CALL_SECONDS).upload
                check_upload(upload)
                self._contact = time.monotonic()
                header.write_offset = min(upload.committed_size_bytes, len(update))
            first = False
            messages = _push_messages(header, update, min(chunk_size, CHUNK_SIZE_BYTES))
            response = self._channel.push_update(messages, timeout=_TRANSFER_SECONDS)
            check_push(response)
            if response.outcome == pb.PushUpdateResponse.OUTCOME_NOT_STORED:
                raise NotStored(response.message)
            return response

        # Each mismatch tells where to go on; more than a few mean that something is wrong.
        for _ in range(2 * _DIGEST_ATTEMPTS):
            response = self._call(attempt)
            if response.outcome not in (
                pb.PushUpdateResponse.OUTCOME_OFFSET_MISMATCH,
                pb.PushUpdateResponse.OUTCOME_DIGEST_MISMATCH,
            ):
                return response
            log.warning("upload goes on elsewhere", problem=response.message)
        raise RunFailed("the server did not get the update whole; the network damages it")

    # ----------------------------------------------------------------- retrying

    def _call(self, call: Callable[[], R]) -> R:
        """Call until an answer comes, waiting longer each time; give up after `max_wait`."""
        delay, since = _FIRST_DELAY_SECONDS, time.monotonic()
        while True:
            if self._stop.is_set():
                raise Stopped("asked to end")
            try:
                answer = call()
                self._contact = time.monotonic()
                return answer
            except grpc.RpcError as error:
                if self._stop.is_set():
                    raise Stopped("asked to end") from error
                if not _is_retried(error):
                    raise self._translate(error) from error
                problem, wanted = self._unreachable(error), retry_delay(error)
            except NotStored as error:
                problem, wanted = str(error), None
            except ValueError as error:  # The channel was closed under the call.
                raise Stopped("asked to end") from error
            waited = time.monotonic() - max(since, self._contact)
            if waited + delay > self._max_wait:
                raise RunFailed(
                    f"no server at {self._address} for {self._max_wait:g} s "
                    f"({problem}); check --server, or wait longer with --max-wait"
                )
            if delay == _FIRST_DELAY_SECONDS:
                log.info(
                    "waiting for the server",
                    server=self._address,
                    problem=problem,
                    for_up_to_seconds=self._max_wait,
                )
            # Who is told to come again at once, always, would do nothing else.
            if wanted is None or wanted < _FIRST_DELAY_SECONDS:
                self._stop.wait(delay * self._jitter.uniform(0.5, 1.0))
            else:
                wanted = min(wanted, _LONGEST_WAIT_SECONDS)
                self._stop.wait(wanted * self._jitter.uniform(1.0, 1.2))
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)

    def _unreachable(self, error: grpc.RpcError) -> str:
        """Return what is the matter with a server that may be there later."""
        problem = printable(str(error.details()), MOST_TEXT)
        if self._contact:
            return problem
        if any(words in problem for words in _UNTRUSTED):
            raise InputError(
                f"--tls-ca: {self._address} is not trusted ({problem}); --tls-ca must "
                "be the CA of its certificate, and --server a name in it; does it use TLS at all?"
            ) from error
        if _CLOSED in problem:
            return f"{problem}; does it want TLS (--tls-ca), or another certificate (--tls-cert)?"
        return problem

    def _translate(self, error: grpc.RpcError) -> FolkmootError:
        reason = _reason(error)
        details = printable(error.details() or error.code().name, MOST_TEXT)
        match reason:
            case "SESSION_UNKNOWN":
                return SessionLost(details)
            case "SESSION_SUPERSEDED":
                return Superseded(f"{details}; give each process a --partition of its own")
            case "RUN_ENDED":
                return RunEnded(details)
            case "ROUND_CLOSED" | "MODEL_UNKNOWN" | "ASSIGNMENT_UNKNOWN":
                return WorkLost(details)
            case "TASK_MISMATCH":
                return InputError(
                    f"--task: {details}; if you trust that code, start this client with that --task"
                )
            case "PARTITION_OUT_OF_RANGE" | "PARTITION_TAKEN":
                return InputError(f"--partition: {details}")
            case "JOIN_TOKEN_INVALID":
                return InputError(f"--join-token-file: {details}")
            case "IDENTITY_MISMATCH" | "CLIENT_ID_TAKEN":
                return InputError(f"--client-id: {details}")
            case "NOT_A_CLIENT":
                return InputError(f"--tls-cert: {details}")
            case "FIELD_INVALID":
                return InputError(f"the server refused the request: {details}")
        return RunFailed(f"the server at {self._address} answered {error.code().name}: {details}")


def _chunks(messages: Iterable[pb.PullModelResponse | Piece]) -> Iterator[Piece]:
    """Yield a model's chunks, each of which brings it on.

    Raises:
        StreamDamaged: one does not, or the header is not exactly once there, and first.
    """
    ended = False
    for index, message in enumerate(messages):
        if isinstance(message, Piece) != (index > 0):
            raise StreamDamaged("the first message of a stream must be its only header")
        if isinstance(message, Piece):
            if ended or not (message.data or message.last):
                raise StreamDamaged("a chunk after the last, or an empty one before it")
            yield message
            ended = message.last


def _push_messages(
    header: pb.PushUpdateHeader, update: memoryview, chunk_size: int
) -> Iterator[bytes]:
    yield pb.PushUpdateRequest(header=header).SerializeToString()
    for piece in pieces(update, header.write_offset, chunk_size):
        yield encode_piece(piece)


def _reason(error: grpc.RpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    return str(info.reason) if _unpack(error, info) else ""


def _is_retried(error: grpc.RpcError) -> bool:
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # With a reason of the server's. gRPC's own has none: a message is too large, and stays so.
        return bool(_reason(error))
    return error.code() in _RETRIED or _is_broken_stream(error)


def _is_broken_stream(error: grpc.RpcError) -> bool:
    """Say whether gRPC, and not the server, ended a call, as where bytes were damaged."""
    return (
        error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
        and bool(error.details())
        and not _reason(error)
    )


def retry_delay(error: grpc.RpcError) -> float | None:
    """Return after how many seconds the server wants to be asked again, if it says so."""
    info = error_details_pb2.RetryInfo()
    return seconds_of(info.retry_delay) if _unpack(error, info) else None


def _unpack(error: grpc.RpcError, detail: Message) -> bool:
    """Fill `detail` from the error's detail of that kind; return whether there is one."""
    try:
        status = rpc_status.from_call(error)
        return any(found.Unpack(detail) for found in (status.details if status else ()))
    except (ValueError, DecodeError):  # Another status than the call's, or none at all.
        return False
