"""Whatever the bytes, the chunk codec reads what the protobuf library reads, or its error."""

from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from common.transfer import Piece
from protos import federated_pb2 as pb
from protos.chunks import decode_message, encode_piece

# The same examples each time.
PROFILE = settings(derandomize=True, deadline=None, database=None, max_examples=500)

kinds = st.sampled_from([pb.PullModelResponse, pb.PushUpdateRequest])
varints = st.one_of(
    st.integers(0, 300),
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([(1 << 31) - 1, 1 << 31, (1 << 63) - 1, 1 << 63]),
)


def varint(value, padding=0):
    """Return a varint, with so many bytes more than it needs."""
    out = bytearray()
    while value > 0x7F or padding:
        if value <= 0x7F:
            padding -= 1
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@st.composite
def fields(draw):
    """Draw a field of a Chunk as it is, or nearly so."""
    number, wire_type = draw(st.integers(0, 16)), draw(st.sampled_from([0, 0, 2, 2, 1, 5, 3, 4]))
    if draw(st.booleans()):
        number, wire_type = draw(st.sampled_from([(1, 0), (2, 2), (3, 0)]))
    padding = draw(st.sampled_from([0, 0, 0, 1, 9]))
    tag = varint(number << 3 | wire_type)
    if wire_type != 2:
        return tag + varint(draw(varints), padding)
    data = draw(st.binary(max_size=200))
    length = draw(st.one_of(st.just(len(data)), varints))
    return tag + varint(length, padding) + data


@st.composite
def messages(draw):
    """Draw a message with a chunk of such fields; its length may lie."""
    chunk = b"".join(draw(st.lists(fields(), max_size=4)))
    length = draw(st.one_of(st.just(len(chunk)), varints))
    before, after = draw(st.sampled_from([b"", b"", b"\x0a\x00"])), draw(st.binary(max_size=3))
    return before + b"\x12" + varint(length) + chunk + draw(st.sampled_from([b"", after]))


@st.composite
def mutated(draw):
    """Draw a good message with some bytes replaced, cut or put in."""
    piece = Piece(draw(st.integers(0, (1 << 63) - 1)), memoryview(draw(st.binary())), True)
    message = bytearray(encode_piece(piece))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(message)))
        message[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(message)


@PROFILE
@given(kinds, st.integers(0, (1 << 63) - 1), st.binary(), st.booleans())
def test_a_piece_comes_back_as_it_was(kind, offset, data, last):
    piece = Piece(offset, memoryview(data), last)
    assert decode_message(encode_piece(piece), kind) == piece
    chunk = pb.Chunk(offset=offset, data=data, finish_write=last)
    assert kind.FromString(encode_piece(piece)) == kind(chunk=chunk)


@PROFILE
@given(kinds, st.one_of(messages(), mutated(), st.binary()))
def test_any_bytes_are_read_as_the_library_reads_them(kind, message):
    try:
        expected = kind.FromString(message)
    except DecodeError:
        expected = None
    try:
        found = decode_message(message, kind)
    except DecodeError:
        found = None
    if isinstance(found, Piece):
        offset, data, last = found
        found = kind(chunk=pb.Chunk(offset=offset, data=bytes(data), finish_write=last))
        # What nobody knows is not kept.
        assert expected is not None
        expected.chunk.DiscardUnknownFields()
        expected.DiscardUnknownFields()
    assert found == expected
