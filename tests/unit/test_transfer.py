"""Payloads in chunks: any split of them reassembles, and nothing wrong gets through."""

import io
import random

import pytest

from common.tensors import digest_bytes
from common.transfer import (
    CHUNK_SIZE_BYTES,
    DigestMismatch,
    OffsetMismatch,
    PayloadTooLong,
    Receiver,
    pieces,
)

PAYLOAD = bytes(range(256)) * 4


def receiving(payload=PAYLOAD):
    sink = io.BytesIO()

    def store(offset, data):
        sink.seek(offset)
        sink.write(data)

    return Receiver(store, digest_bytes(payload)), sink


@pytest.mark.parametrize("size", [1, 7, 256, len(PAYLOAD) - 1, len(PAYLOAD), len(PAYLOAD) + 1])
@pytest.mark.parametrize("payload", [PAYLOAD, b"", b"x"])
def test_pieces_of_any_size_reassemble(payload, size):
    receiver, sink = receiving(payload)
    sent = list(pieces(memoryview(payload), 0, size))
    for piece in sent:
        receiver.write(piece.offset, piece.data)
    receiver.finish()
    assert sink.getvalue() == payload
    assert [piece.last for piece in sent] == [False] * (len(sent) - 1) + [True]
    assert all(len(piece.data) <= size for piece in sent)


@pytest.mark.parametrize("seed", range(10))
def test_a_stream_that_breaks_anywhere_goes_on_at_the_offset(seed):
    rng = random.Random(seed)
    receiver, sink = receiving()
    while True:
        for piece in pieces(memoryview(PAYLOAD), receiver.offset, rng.randint(1, 300)):
            if rng.random() < 0.3:
                break  # The stream is cut before this piece arrives.
            receiver.write(piece.offset, piece.data)
        else:
            break
    receiver.finish()
    assert sink.getvalue() == PAYLOAD


def test_a_payload_that_is_all_there_still_gets_its_last_piece():
    (piece,) = pieces(memoryview(PAYLOAD), len(PAYLOAD))
    assert (piece.offset, bytes(piece.data), piece.last) == (len(PAYLOAD), b"", True)


def test_a_piece_is_1_mib_and_no_copy():
    payload = memoryview(bytearray(CHUNK_SIZE_BYTES + 1))
    first, second = pieces(payload)
    assert (len(first.data), len(second.data)) == (1 << 20, 1)
    assert first.data.obj is payload.obj


@pytest.mark.parametrize("offset", [0, 9, 11])
def test_a_gap_or_an_overlap_is_refused_and_nothing_is_written(offset):
    receiver, sink = receiving()
    receiver.write(0, PAYLOAD[:10])
    with pytest.raises(OffsetMismatch, match=f"chunk at offset {offset}, expected 10"):
        receiver.write(offset, PAYLOAD[10:20])
    assert (receiver.offset, sink.getvalue()) == (10, PAYLOAD[:10])
    receiver.write(10, PAYLOAD[10:])
    receiver.finish()


def test_more_bytes_than_announced_are_refused_and_nothing_is_written():
    receiver, sink = receiving()
    receiver.write(0, PAYLOAD[:1000])
    with pytest.raises(PayloadTooLong, match="1024 announced"):
        receiver.write(1000, PAYLOAD[1000:] + b"!")
    assert (receiver.offset, sink.getvalue()) == (1000, PAYLOAD[:1000])


@pytest.mark.parametrize("received", [PAYLOAD[:-1], b"", b"!" + PAYLOAD[1:]])
def test_a_wrong_digest_or_size_resets_and_the_payload_may_come_again(received):
    receiver, sink = receiving()
    receiver.write(0, received)
    with pytest.raises(DigestMismatch, match=f"received {len(received)} bytes"):
        receiver.finish()
    assert receiver.offset == 0
    receiver.write(0, PAYLOAD)
    receiver.finish()
    assert sink.getvalue() == PAYLOAD
