"""What both gRPC services share; above all, errors become canonical statuses in one interceptor.

Knows no method by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from common.errors import RequestError
from common.logs import get_logger
from protos import federated_pb2 as pb
from server.checkpoints import ModelFile

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
        method = handler_call_details.method
        authorize = self._authorize if method.startswith(f"/{DOMAIN}.") else None
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                _unary(handler.unary_unary, method, authorize),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(
                _unary(handler.stream_unary, method, authorize),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                _streaming(handler.unary_stream, method, authorize),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return handler  # Reflection, the only one that streams both ways.


def _unary(
    behavior: Callable[..., Any], method: str, authorize: Authorize | None
) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:  # noqa: ANN401
        try:
            if authorize is not None:
                authorize(context)
            result = behavior(request, context)
            return await result if inspect.isawaitable(result) else result
        except Exception as error:  # noqa: BLE001 - the one place where every error ends
            await _abort(context, error, method)

    return call


def _streaming(
    behavior: Callable[..., Any], method: str, authorize: Authorize | None
) -> Callable[..., Any]:
    async def call(request: Any, context: Context) -> Any:  # noqa: ANN401
        try:
            if authorize is not None:
                authorize(context)
            result = behavior(request, context)
            if inspect.isawaitable(result):
                await result
                return
            async for response in result:
                yield response
        except Exception as error:  # noqa: BLE001 - the one place where every error ends
            await _abort(context, error, method)

    return call


async def _abort(context: Context, error: Exception, method: str) -> None:
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
