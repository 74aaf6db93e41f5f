"""Sends raw calls, names their outcomes, and speaks garbage on plain sockets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress

import grpc
from google.rpc import error_details_pb2, status_pb2

from protos import federated_pb2 as pb
from scripts.admin_channel import bearer
from scripts.resilience.calls import BROKEN_OFF, PUSH, Call

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
_SOCKET_SECONDS = 0.1
# What the caller's gRPC makes of a status that comes while it still writes; see PushUpdate.
_WHILE_WRITING = "Internal error from Core"
_DETAILS = "grpc-status-details-bin"


async def send(channel: grpc.aio.Channel, call: Call, token: str) -> tuple[str, bytes]:
    """Make a call; return its outcome, e.g. "OK" or "NOT_FOUND SESSION_UNKNOWN", and the answer.

    Args:
        channel: to the port of the call's service.
        call: as it was drawn.
        token: the operator's.
    """
    method = getattr(channel, call.kind)(call.path)
    request = _stream(call) if call.kind.startswith("stream") else call.messages[0]
    answer = b""
    metadata = bearer(token) if call.is_admin and call.authorized else None
    running = method(request, timeout=call.deadline, metadata=metadata)
    try:
        if call.kind.endswith("_unary"):
            if call.cut:
                await _cancel_soon(running)
            answer = await running
        elif call.responses is None:
            async for answer in running:  # noqa: B007
                pass
        else:
            for _ in range(call.responses):
                if (answer := await running.read()) is grpc.aio.EOF:
                    break
            running.cancel()
            answer = b""
    except grpc.aio.AioRpcError as error:
        return name_of(error), b""
    except asyncio.CancelledError:
        if not running.cancelled():
            raise
        return "cancelled by us", b""
    if running.cancelled():
        return "cancelled by us", b""
    if call.path == PUSH:
        outcome = pb.PushUpdateResponse.FromString(answer).outcome
        return f"OK {pb.PushUpdateResponse.Outcome.Name(outcome)}", answer
    return "OK", answer


async def _stream(call: Call) -> AsyncIterator[bytes]:
    for message in call.messages:
        yield message
    if call.cut:  # Neither ended nor gone on with: until it is cancelled.
        await asyncio.Event().wait()


async def _cancel_soon(running: grpc.aio.StreamUnaryCall[bytes, bytes]) -> None:
    await asyncio.wait([asyncio.ensure_future(running.wait_for_connection())], timeout=1.0)
    await asyncio.sleep(0)
    running.cancel()


def name_of(error: grpc.aio.AioRpcError) -> str:
    """Return a status and its reason, e.g. NOT_FOUND SESSION_UNKNOWN."""
    code = error.code().name
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS and isinstance(value, bytes):
            info = error_details_pb2.ErrorInfo()
            status_pb2.Status.FromString(value).details[0].Unpack(info)
            return f"{code} {info.reason}"
    if error.details() == _WHILE_WRITING:
        return BROKEN_OFF
    return code


def garbage(rng: random.Random) -> bytes:
    """Return what no HTTP/2 client says."""
    frame = rng.randrange(1 << 14).to_bytes(3, "big") + rng.randbytes(6)
    kinds = [
        b"",
        rng.randbytes(rng.choice([1, 100, 100_000])),
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(100),
        _PREFACE[: rng.randrange(len(_PREFACE))],
        _PREFACE,
        _PREFACE + rng.randbytes(1000),
        _PREFACE + _SETTINGS + frame + rng.randbytes(500),
        # Headers of no known encoding, a window of 0, and a stream's data before its headers.
        _PREFACE + _SETTINGS + b"\0\0\5\1\4\0\0\0\1" + rng.randbytes(5),
        _PREFACE + _SETTINGS + b"\0\0\4\x08\0\0\0\0\0\0\0\0\0",
        _PREFACE + _SETTINGS + b"\0\0\4\0\0\0\0\0\1abcd",
        _PREFACE + _SETTINGS + b"\0\0\4\3\0\0\0\0\1\0\0\0\0" * 100,
        _PREFACE + _SETTINGS * 1000,
    ]
    return rng.choice(kinds)


async def speak(address: str, data: bytes) -> str:
    """Send bytes on a socket of their own; say who ended it: the server, or we after a while."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        with suppress(ConnectionError):
            await writer.drain()
            async with asyncio.timeout(_SOCKET_SECONDS):
                while await reader.read(1 << 16):
                    pass
        return "ended by the server"
    except TimeoutError:
        return "ended by us"
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
