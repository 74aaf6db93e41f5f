"""A model's chunks on their way out: encoded once, cut at the same places for all."""

import os

import pytest

from common.tensors import digest_bytes
from common.transfer import CHUNK_SIZE_BYTES
from protos import federated_pb2 as pb
from server.rpc.chunk_cache import OutgoingChunks

PAYLOAD = os.urandom(2 * CHUNK_SIZE_BYTES + 5)
DIGEST = digest_bytes(PAYLOAD)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "model").write_bytes(PAYLOAD)
    with (tmp_path / "model").open("rb") as file:
        yield file.fileno()


def pulled(chunks, file, offset, digest=DIGEST):
    data, ends = b"", []
    while not ends or ends[-1] < digest.size_bytes:
        message, end = chunks.message(digest, file, offset)
        chunk = pb.PullModelResponse.FromString(message).chunk
        assert (chunk.offset, chunk.finish_write) == (offset, end == digest.size_bytes)
        data, offset = data + chunk.data, end
        ends.append(end)
    return data, ends


@pytest.mark.parametrize(
    "offset", [0, 1, CHUNK_SIZE_BYTES - 1, CHUNK_SIZE_BYTES, len(PAYLOAD) - 1, len(PAYLOAD)]
)
def test_chunks_from_any_offset_are_the_rest_of_the_payload(file, offset):
    data, ends = pulled(OutgoingChunks(), file, offset)
    assert data == PAYLOAD[offset:]
    assert all(end % CHUNK_SIZE_BYTES == 0 for end in ends[:-1])


def test_clients_that_pull_at_the_same_time_share_one_message(file):
    chunks = OutgoingChunks()
    first, _ = chunks.message(DIGEST, file, 0)
    assert chunks.message(DIGEST, file, 0)[0] is first


def test_no_more_messages_are_kept_than_told(file):
    chunks = OutgoingChunks(most=2)
    first, _ = chunks.message(DIGEST, file, 0)
    pulled(chunks, file, CHUNK_SIZE_BYTES)
    again, _ = chunks.message(DIGEST, file, 0)
    assert again == first
    assert again is not first


def test_another_model_has_its_own_messages(file, tmp_path):
    chunks = OutgoingChunks()
    pulled(chunks, file, 0)
    other = os.urandom(9)
    (tmp_path / "other").write_bytes(other)
    with (tmp_path / "other").open("rb") as second:
        assert pulled(chunks, second.fileno(), 0, digest_bytes(other))[0] == other


def test_a_model_that_is_shorter_than_announced_is_an_error(file):
    with pytest.raises(OSError, match="ends at"):
        OutgoingChunks().message(DIGEST._replace(size_bytes=3 * CHUNK_SIZE_BYTES), file, 2 << 20)
