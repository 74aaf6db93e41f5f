"""What both gRPC services share; above all, errors become canonical statuses in one interceptor.

Knows no method by name.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from common.errors import RequestError
from common.logs import get_logger
from protos import federated_pb2 as pb
from server.checkpoints import ModelFile
from server.limits import invalid

DOMAIN = "federated.v1"

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


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Ends a call whose handler raised: RequestError as it says, anything else as INTERNAL.

    Args:
        authorize: called before each method of this project's services; raises RequestError.
    """

    def __init__(self, authorize: Authorize | None = None) -> None:
        self._authorize = authorize

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401
        """Wrap the handler of a call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        read = _Reader(handler.request_deserializer, handler.request_streaming)
        method, write = handler_call_details.method, handler.response_serializer
        authorize = self._authorize if method.startswith(f"/{DOMAIN}.") else None
        # Without a deserializer: gRPC would answer bytes that are no message with UNKNOWN.
        if handler.unary_unary:
            call = _unary(handler.unary_unary, read, authorize, method)
            return grpc.unary_unary_rpc_method_handler(call, None, write)
        if handler.stream_unary:
            call = _unary(handler.stream_unary, read, authorize, method)
            return grpc.stream_unary_rpc_method_handler(call, None, write)
        if handler.unary_stream:
            call = _streaming(handler.unary_stream, read, authorize, method)
            return grpc.unary_stream_rpc_method_handler(call, None, write)
        call = _streaming(handler.stream_stream, read, authorize, method)
        return grpc.stream_stream_rpc_method_handler(call, None, write)


class _Reader:
    """Makes messages of the bytes of a call's request, be it one or a stream."""

    def __init__(self, decode: Callable[[bytes], Any], streaming: bool) -> None:
        self._decode = decode
        self._streaming = streaming

    def __call__(self, request: Any) -> Any:  # noqa: ANN401
        return self._each(request) if self._streaming else self._one(request)

    def _one(self, data: bytes) -> Any:  # noqa: ANN401
        try:
            return self._decode(data)
        except DecodeError as error:
            raise invalid(str(error), "MESSAGE_INVALID") from error

    async def _each(self, stream: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for data in stream:
            yield self._one(data)


def _unary(
    behavior: Callable[..., Any], read: _Reader, authorize: Authorize | None, method: str
) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:  # noqa: ANN401
        try:
            if authorize is not None:
                authorize(context)
            result = behavior(read(request), context)
            return await result if inspect.isawaitable(result) else result
        except Exception as error:  # noqa: BLE001 - the one place where every error ends
            await _abort(context, error, method)

    return call


def _streaming(
    behavior: Callable[..., Any], read: _Reader, authorize: Authorize | None, method: str
) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> Any:  # noqa: ANN401
        try:
            if authorize is not None:
                authorize(context)
            result = behavior(read(request), context)
            if inspect.isawaitable(result):
                await result
                return
            async for response in result:
                yield response
        except Exception as error:  # noqa: BLE001 - the one place where every error ends
            await _abort(context, error, method)

    return call


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
