"""What both gRPC services share; above all, errors become canonical statuses in one interceptor.

Knows no method by name.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from common.errors import RequestError, Status
from common.logs import get_logger
from protos import federated_pb2 as pb
from server.checkpoints import ModelFile

DOMAIN = "federated.v1"

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext

log = get_logger()


def invalid(message: str, reason: str = "FIELD_INVALID") -> RequestError:
    """Return the error for a field outside its bounds."""
    return RequestError(Status.INVALID_ARGUMENT, reason, message)


def model_ref(model: ModelFile) -> pb.ModelRef:
    """Return a model as messages name it."""
    digest = pb.Digest(blake3=model.digest.blake3, size_bytes=model.digest.size_bytes)
    return pb.ModelRef(version=model.version, digest=digest)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Ends a call whose handler raised: RequestError as it says, anything else as INTERNAL."""

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
        # Without a deserializer: gRPC would answer bytes that are no message with UNKNOWN.
        if handler.unary_unary:
            call = _unary(handler.unary_unary, read, method)
            return grpc.unary_unary_rpc_method_handler(call, None, write)
        if handler.stream_unary:
            call = _unary(handler.stream_unary, read, method)
            return grpc.stream_unary_rpc_method_handler(call, None, write)
        if handler.unary_stream:
            call = _streaming(handler.unary_stream, read, method)
            return grpc.unary_stream_rpc_method_handler(call, None, write)
        call = _streaming(handler.stream_stream, read, method)
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
    behavior: Callable[..., Any], read: _Reader, method: str
) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:  # noqa: ANN401
        try:
            result = behavior(read(request), context)
            return await result if inspect.isawaitable(result) else result
        except Exception as error:  # noqa: BLE001 - the one place where every error ends
            await _abort(context, error, method)

    return call


def _streaming(behavior: Callable[..., Any], read: _Reader, method: str) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> Any:  # noqa: ANN401
        try:
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
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))
    status = status_pb2.Status(
        code=code_pb2.Code.Value(error.status.value), message=str(error), details=[detail]
    )
    await context.abort(
        grpc.StatusCode[error.status.value],
        str(error),
        (("grpc-status-details-bin", status.SerializeToString()),),
    )
