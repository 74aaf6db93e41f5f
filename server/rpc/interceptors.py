"""What both gRPC services share; above all, errors become canonical statuses in one interceptor.

Knows no method by name.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from common.errors import RequestError, Status
from common.logs import get_logger
from protos import federated_pb2 as pb
from server.run.limits import MAX_UNFINISHED, UNFINISHED_SECONDS, invalid
from server.storage.checkpoints import ModelFile

DOMAIN = "federated.v1"
# Anyone could hold such a call for as long as they like. gRPC's clients take a server for healthy
# that does not know it; others call Check.
_HEALTH_WATCH = "/grpc.health.v1.Health/Watch"

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext

Authorize = Callable[[Context], None]

log = get_logger()


def model_ref(model: ModelFile) -> pb.ModelRef:
    """Return a model as messages name it."""
    digest = pb.Digest(blake3=model.digest.blake3, size_bytes=model.digest.size_bytes)
    return pb.ModelRef(version=model.version, digest=digest)


def duration(seconds: float) -> Duration:
    """Return seconds, to the millisecond, as messages hold them."""
    message = Duration()
    message.FromMilliseconds(round(seconds * 1000))
    return message


class Room:
    """Places for calls that nobody vouches for yet; the oldest makes room for the newest.

    Args:
        most: calls at a time.
        seconds: that each may take.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._calls: dict[asyncio.Timeout, None] = {}

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[None, None]:
        """Hold a place within this.

        Raises:
            RequestError: REQUEST_UNFINISHED: time is up, or newer calls took the places.
        """
        try:
            async with asyncio.timeout(self._seconds) as call:
                self._calls[call] = None
                if len(self._calls) > self._most:
                    oldest = next(iter(self._calls))
                    del self._calls[oldest]
                    oldest.reschedule(asyncio.get_running_loop().time())
                try:
                    yield
                finally:
                    self._calls.pop(call, None)
        except TimeoutError as error:
            message = f"the request was not there in time ({self._seconds:g} s); try again"
            raise RequestError(Status.UNAVAILABLE, "REQUEST_UNFINISHED", message) from error


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Ends a call whose handler raised: RequestError as it says, anything else as INTERNAL.

    It also bounds what unfinished requests hold. gRPC begins a handler that takes a stream when
    the headers are there, and one that takes a message when that is; on the wire both are alike.
    So all take a stream here, and gRPC reads no message that has no place in a `Room`.

    Args:
        authorize: called before each method of this project's services; raises RequestError.
    """

    def __init__(self, authorize: Authorize | None = None) -> None:
        self._authorize = authorize
        self._room = Room(MAX_UNFINISHED, UNFINISHED_SECONDS)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401
        """Wrap the handler of a call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method == _HEALTH_WATCH:
            return None
        write = handler.response_serializer
        call = self._wrapped(handler, method)
        # Without a deserializer: gRPC would answer bytes that are no message with UNKNOWN.
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(call, None, write)
        return grpc.stream_unary_rpc_method_handler(call, None, write)

    def _wrapped(self, handler: Any, method: str) -> Callable[..., Awaitable[Any]]:  # noqa: ANN401
        behavior = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        ours = method.startswith(f"/{DOMAIN}.")
        authorize = self._authorize if ours else None
        # Ours look at the caller once the first message is there; the others never do.
        first_place, place = (
            (self._room.place, nullcontext) if ours else (nullcontext, self._room.place)
        )
        read = _Reader(handler.request_deserializer, first_place)

        async def answer(messages: AsyncIterator[bytes], context: Context) -> Any:  # noqa: ANN401
            if authorize is not None:
                authorize(context)
            request = read.each(messages) if handler.request_streaming else await read.one(messages)
            result = behavior(request, context)
            if inspect.isawaitable(result):
                return await result
            if not handler.response_streaming:
                return result
            async for response in result:
                try:
                    await context.write(response)
                except grpc.aio.BaseError:  # The caller has gone: nobody hears of anything.
                    return None
            return None

        async def call(messages: AsyncIterator[bytes], context: Context) -> Any:  # noqa: ANN401
            try:
                async with place():
                    return await answer(messages, context)
            except Exception as error:  # noqa: BLE001 - the one place where every error ends
                await _abort(context, error, method)

        return call


class _Reader:
    """Makes messages of the bytes of a call's request, be it one or a stream.

    Args:
        decode: the message.
        place: entered while the first message is awaited.
    """

    def __init__(
        self, decode: Callable[[bytes], Any], place: Callable[[], AbstractAsyncContextManager[None]]
    ) -> None:
        self._decode = decode
        self._place = place

    async def one(self, messages: AsyncIterator[bytes]) -> Any:  # noqa: ANN401
        """Return the first message.

        Raises:
            RequestError: MESSAGE_INVALID: there is none, or its bytes are none.
        """
        first = await anext(self.each(messages), None)
        if first is None:
            raise invalid("the request has no message", "MESSAGE_INVALID")
        return first

    async def each(self, messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """Yield all messages.

        Raises:
            RequestError: MESSAGE_INVALID: the bytes of one are none.
        """
        async with self._place():
            data = await anext(messages, None)
        while data is not None:
            try:
                message = self._decode(data)
            except DecodeError as error:
                raise invalid(str(error), "MESSAGE_INVALID") from error
            yield message
            data = await anext(messages, None)


async def _abort(context: Context, error: Exception, method: str) -> None:
    if isinstance(error, grpc.aio.AbortError):  # Health has told the caller already.
        raise error
    if not isinstance(error, RequestError):
        log.error("bug in a call", method=method, exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL)
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if error.retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration(error.retry_after)))
    status = status_pb2.Status(
        code=code_pb2.Code.Value(error.status.value),
        message=str(error),
        details=[_packed(detail) for detail in details],
    )
    await context.abort(
        grpc.StatusCode[error.status.value],
        str(error),
        (("grpc-status-details-bin", status.SerializeToString()),),
    )


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
