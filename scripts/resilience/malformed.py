"""Malformed messages, drawn by a seeded generator: wrong values, damaged bytes, hostile files.

Wrong values come from the descriptors of the messages, so every field of every request is met.
Knows nothing about calls or servers.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_LARGE = 70_000
_LARGEST = 2 << 20
_TEXTS = [
    "",
    "\0",
    "a b",
    "../../etc",
    "\u202e\ufeff",
    "🦀",
    "²",
    "NaN",
    "-1",
    "9" * 19,
    "1" * 5000,
]
_LENGTHS = [1, 63, 64, 65, 128, 129, 256, 257, 1024, 1025, 5000, _LARGE]
_DOUBLES = [0.0, -0.0, -1.0, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf]
_COUNTS = [0, 1, 2, 32, 33, 64, 65, 1000]
# A start and an end of a group of field 15, and a Value in a list in a Value.
_GROUP, _GROUP_END = b"\x7b", b"\x7c"


def wrong_values(rng: random.Random, right: Message, texts: Sequence[str]) -> bytes:
    """Return the bytes of a message with some fields changed to what a caller should not send.

    Args:
        rng: draws.
        right: a message as it should be.
        texts: what looks right somewhere, e.g. the tokens of others.
    """
    message = type(right)()
    message.CopyFrom(right)
    _change_some(rng, message, texts)
    return message.SerializeToString()


def _change_some(rng: random.Random, message: Message, texts: Sequence[str]) -> None:
    """Change few fields, so that the others lead behind the first checks."""
    fields: list[Any] = list(message.DESCRIPTOR.fields)
    for field in rng.sample(fields, min(len(fields), rng.choice([1, 1, 1, 2, 3]))):
        _change(rng, message, field, texts)


def _change(
    rng: random.Random, message: Message, field: FieldDescriptor, texts: Sequence[str]
) -> None:
    name = field.name
    message_type = field.message_type
    if rng.random() < 0.1:
        message.ClearField(name)
    elif message_type is not None and message_type.GetOptions().map_entry:
        values = message_type.fields_by_name["value"]
        for number in range(rng.choice(_COUNTS)):
            key = _text(rng, texts) if rng.random() < 0.1 else f"m{number}"
            getattr(message, name)[key] = _value(rng, values, 0, texts)
    elif field.is_repeated:
        value = _value(rng, field, 0, texts)
        getattr(message, name).extend([value] * min(rng.choice(_COUNTS), 2_000_000 // _size(value)))
    elif message_type is not None:
        inner = getattr(message, name)
        inner.SetInParent()
        _change_some(rng, inner, texts)
    else:
        setattr(message, name, _value(rng, field, getattr(message, name), texts))


def _value(
    rng: random.Random,
    field: FieldDescriptor,
    right: Any,  # noqa: ANN401
    texts: Sequence[str],
) -> Any:  # noqa: ANN401
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice([0, 1, -1, 5, 1 << 20, (1 << 31) - 1, -(1 << 31)])
        case FieldDescriptor.CPPTYPE_INT64:
            near = [n for n in (right - 1, right + 1) if abs(n) < 1 << 63]
            return rng.choice([0, -1, 1 << 31, 1 << 62, (1 << 63) - 1, -(1 << 63), *near])
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return rng.choice(_DOUBLES)
        case FieldDescriptor.CPPTYPE_BOOL:
            return not right
        case _:
            text = _text(rng, texts)
            if field.type != FieldDescriptor.TYPE_BYTES:
                return text
            return rng.choice([text.encode(), rng.randbytes(32), b"\xff\xfe", b"\xed\xa0\x80"])


def _text(rng: random.Random, texts: Sequence[str]) -> str:
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(texts)
    if kind < 0.7:
        return rng.choice(_TEXTS)
    return rng.choice("aé0") * (_LARGEST if kind > 0.998 else rng.choice(_LENGTHS))


def _size(value: Any) -> int:  # noqa: ANN401
    return len(value) * 2 + 1 if isinstance(value, str | bytes) else 10


def damaged(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Return the bytes of a message with one to three damages, some of them from another one."""
    for _ in range(rng.randint(1, 3)):
        data = rng.choice(_DAMAGES)(rng, data, other)
    return data


def _flip(rng: random.Random, data: bytes, _: bytes) -> bytes:
    out = bytearray(data or b"\0")
    for _number in range(rng.randint(1, 8)):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _truncate(rng: random.Random, data: bytes, _: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _insert(rng: random.Random, data: bytes, _: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randint(1, 9)) + data[at:]


def _repeat(rng: random.Random, data: bytes, _: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data + data[start : start + 50] * rng.choice([1, 2, 100])


def _unknown_field(rng: random.Random, data: bytes, _: bytes) -> bytes:
    size = rng.randrange(100)
    return data + b"\xfa\x7f" + bytes([size]) + rng.randbytes(size)


def _long_varint(rng: random.Random, data: bytes, _: bytes) -> bytes:
    tag = bytes([rng.randrange(1, 8) << 3])
    return data + tag + b"\xff" * rng.randint(1, 12) + rng.choice([b"\x00", b"\x01", b"\x7f"])


def _long_length(rng: random.Random, data: bytes, _: bytes) -> bytes:
    tag = bytes([rng.randrange(1, 8) << 3 | 2])
    return data + tag + b"\xff" * rng.choice([3, 4, 8]) + b"\x0f"


def _bad_utf8(rng: random.Random, data: bytes, _: bytes) -> bytes:
    bad = rng.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"])
    return data + bytes([rng.randrange(1, 6) << 3 | 2, len(bad)]) + bad


def _deep_groups(rng: random.Random, data: bytes, _: bytes) -> bytes:
    depth = rng.choice([50, 99, 100, 101, 1000, _LARGE])
    return data + _GROUP * depth + _GROUP_END * rng.choice([depth, 0])


def _deep_messages(rng: random.Random, data: bytes, _: bytes) -> bytes:
    inner = b""
    for _number in range(rng.choice([10, 99, 101, 500])):
        size = len(inner)
        length = bytes([size]) if size < 128 else bytes([size & 0x7F | 0x80, size >> 7])
        inner = b"\x3a" + length + inner
    return data + inner


_DAMAGES: list[Callable[[random.Random, bytes, bytes], bytes]] = [
    _flip,
    _truncate,
    _splice,
    _insert,
    _repeat,
    _unknown_field,
    _long_varint,
    _long_length,
    _bad_utf8,
    _deep_groups,
    _deep_messages,
]


def hostile_file(rng: random.Random, right: bytes) -> bytes:
    """Return bytes that pass for a safetensors file with the tensors of another, but are none."""
    length = int.from_bytes(right[:8], "little")
    header, values = right[8 : 8 + length], right[8 + length :]
    kind = rng.randrange(5)
    if kind == 0:
        lengths = [0, 1, length - 1, length + 1, len(right), 1 << 31, (1 << 63) - 1, 1 << 63]
        return struct.pack("<Q", rng.choice(lengths)) + header + values
    if kind == 1:
        headers = [b"[" * _LARGE, b'{"a":' * _LARGE, b"{}", b"null", b'"', b"\xff", b" " * length]
        return _file(rng.choice([*headers, header * 2, header[:-2], b" " + header]), values)
    if kind == 2:
        last = rng.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff"])
        return _file(header, values[:-4] + last)
    entries = json.loads(header)
    name = rng.choice([key for key in entries if key != "__metadata__"])
    if kind == 3:
        twice = header[:-1] + b"," + json.dumps({name: entries[name]}).encode()[1:]
        return _file(twice, values)
    entry = entries[name]
    begin, end = entry["data_offsets"]
    numbers = [[begin, end + 1], [begin + 1, end], [end, begin], [-1, end], [begin, 1 << 64], [0]]
    changes: dict[str, list[Any]] = {
        "data_offsets": [*numbers, [begin, 1 << 62], [0.5, end], None, "0"],
        "shape": [[1 << 32, 1 << 32], [1 << 63, 2], [0, 1 << 64], [-1], [], [1] * 1000, [0], 3],
        "dtype": ["F8_E4M3", "F4", "C64", "F128", "", None, 32, "F64", "BOOL"],
    }
    key = rng.choice(list(changes))
    entry[key] = rng.choice(changes[key])
    return _file(json.dumps(entries).encode(), values)


def _file(header: bytes, values: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + values
