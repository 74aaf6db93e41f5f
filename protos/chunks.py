"""Chunks on the wire, without a copy of their data: federated.proto's Chunk, written and read.

PullModelResponse and PushUpdateRequest both hold their `chunk` in field 2, so their bytes are
the same. The protobuf library copies the data three times on each side; this touches it once
to write and not at all to read. What isn't laid out as here is left to the library.
Specification: https://protobuf.dev/programming-guides/encoding.
"""

from typing import TypeVar

from common.transfer import Piece
from protos import federated_pb2 as pb

_CHUNK, _OFFSET, _DATA = b"\x12", b"\x08", b"\x12"
_FINISH = b"\x18\x01"
_MAX_VARINT_BYTES = 9  # Of an int64 that is not negative.

M = TypeVar("M", pb.PullModelResponse, pb.PushUpdateRequest)


def encode_piece(piece: Piece) -> bytes:
    """Return the bytes of a PullModelResponse or PushUpdateRequest with this chunk."""
    offset = _OFFSET + _varint(piece.offset) if piece.offset else b""
    head = offset + _DATA + _varint(len(piece.data))
    tail = _FINISH if piece.last else b""
    size = _varint(len(head) + len(piece.data) + len(tail))
    return b"".join((_CHUNK, size, head, piece.data, tail))


def decode_message(message: bytes, kind: type[M]) -> M | Piece:
    """Return a chunk as a piece, whose data is a view of `message`; else the message.

    Raises:
        google.protobuf.message.DecodeError: the bytes are no message of this kind.
    """
    piece = _decode_piece(message)
    if piece is not None:
        return piece
    parsed = kind.FromString(message)
    if parsed.WhichOneof("payload") == "chunk":
        chunk = parsed.chunk
        return Piece(chunk.offset, memoryview(chunk.data), chunk.finish_write)
    return parsed


def _decode_piece(message: bytes) -> Piece | None:
    try:
        if not message.startswith(_CHUNK):
            return None
        size, at = _read_varint(message, 1)
        if at + size != len(message):
            return None
        offset = 0
        if message.startswith(_OFFSET, at):
            offset, at = _read_varint(message, at + 1)
        if not message.startswith(_DATA, at):
            return None
        size, at = _read_varint(message, at + 1)
    except (IndexError, ValueError):
        return None
    end = at + size
    tail = message[end:]
    if end > len(message) or tail not in (b"", _FINISH):
        return None
    return Piece(offset, memoryview(message)[at:end], last=tail == _FINISH)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for position in range(_MAX_VARINT_BYTES):
        byte = message[at + position]
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value, at + position + 1
    raise ValueError("a varint of more than 63 bits")
