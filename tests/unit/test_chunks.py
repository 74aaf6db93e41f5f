"""The chunk codec writes and reads what the protobuf library does."""

import random

import pytest
from google.protobuf.message import DecodeError

from common.transfer import Piece
from protos import federated_pb2 as pb
from protos.chunks import decode_message, encode_piece

KINDS = [pb.PullModelResponse, pb.PushUpdateRequest]
PIECES = [
    Piece(offset, memoryview(data), last)
    for offset in (0, 1, 127, 128, 1 << 20, (1 << 63) - 1)
    for data in (b"", b"x", b"y" * 127, b"z" * 70_000)
    for last in (False, True)
]


def same(piece, chunk):
    return (piece.offset, piece.data, piece.last) == (chunk.offset, chunk.data, chunk.finish_write)


@pytest.mark.parametrize("kind", KINDS)
def test_the_library_reads_what_is_written(kind):
    for piece in PIECES:
        message = kind.FromString(encode_piece(piece))
        assert message.WhichOneof("payload") == "chunk"
        assert same(piece, message.chunk)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_library_writes_is_read(kind):
    for piece in PIECES:
        offset, data, last = piece
        chunk = pb.Chunk(offset=offset, data=bytes(data), finish_write=last)
        assert decode_message(kind(chunk=chunk).SerializeToString(), kind) == piece


def test_a_piece_is_read_without_a_copy():
    message = encode_piece(Piece(7, memoryview(b"data"), last=True))
    assert decode_message(message, pb.PullModelResponse).data.obj is message


def test_other_messages_are_the_librarys():
    ref = pb.ModelRef(version=3)
    header = pb.PullModelResponse(header=ref)
    assert decode_message(header.SerializeToString(), pb.PullModelResponse) == header
    assert decode_message(b"", pb.PushUpdateRequest) == pb.PushUpdateRequest()


def test_fields_in_another_order_or_unknown_are_read_all_the_same():
    offset, data, last, unknown = b"\x08\x05", b"\x12\x02hi", b"\x18\x01", b"\x78\x01"
    for fields in ([last, data, offset], [unknown, offset, data, last], [offset, data, last * 2]):
        inner = b"".join(fields)
        piece = decode_message(b"\x12" + bytes([len(inner)]) + inner, pb.PushUpdateRequest)
        assert piece == Piece(5, memoryview(b"hi"), last=True)


def test_a_negative_offset_stays_negative():
    chunk = pb.Chunk(offset=-1, data=b"x")
    found = decode_message(pb.PushUpdateRequest(chunk=chunk).SerializeToString(), KINDS[1])
    assert found.offset == -1


@pytest.mark.parametrize("seed", range(20))
def test_damaged_bytes_mean_what_the_library_says_or_are_its_error(seed):
    rng = random.Random(seed)
    good = encode_piece(Piece(rng.randrange(300), memoryview(rng.randbytes(20)), last=True))
    for _ in range(200):
        message = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            message[rng.randrange(min(len(message), 8))] = rng.randrange(256)
        message = bytes(message[: rng.randint(0, len(message))] if rng.random() < 0.3 else message)
        try:
            expected = pb.PushUpdateRequest.FromString(message)
        except DecodeError:
            with pytest.raises(DecodeError):
                decode_message(message, pb.PushUpdateRequest)
            continue
        found = decode_message(message, pb.PushUpdateRequest)
        if expected.WhichOneof("payload") == "chunk":
            assert same(found, expected.chunk)
        else:
            assert found == expected
