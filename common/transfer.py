"""A payload as a stream of chunks that may break anywhere and go on at an offset.

The same `Receiver` takes a model on the client and an update on the server. Knows
nothing about gRPC, files' names or what the bytes mean.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from blake3 import blake3

from common.errors import FolkmootError
from common.tensors import Digest

CHUNK_SIZE_BYTES = 1 << 20


class OffsetMismatch(FolkmootError):
    """A chunk does not begin where the last one ended; go on from `Receiver.offset`."""


class PayloadTooLong(FolkmootError):
    """More bytes came than were announced, or than a chunk may have."""


class DigestMismatch(FolkmootError):
    """The finished payload is not the one announced; the receiver is back at 0."""


class Piece(NamedTuple):
    """One chunk: its offset in the payload, its bytes, and whether it is the last."""

    offset: int
    data: memoryview
    last: bool


def pieces(payload: memoryview, start: int = 0, size: int = CHUNK_SIZE_BYTES) -> Iterator[Piece]:
    """Yield `payload` from `start` on in pieces of `size` bytes; at least one, if only to finish.

    >>> [(p.offset, bytes(p.data), p.last) for p in pieces(memoryview(b"abcde"), 1, 3)]
    [(1, b'bcd', False), (4, b'e', True)]
    """
    end = len(payload)
    while True:
        stop = min(start + size, end)
        yield Piece(start, payload[start:stop], stop == end)
        if stop == end:
            return
        start = stop


class Receiver:
    """Takes a payload's chunks in order, stores them and hashes them on the way.

    Args:
        store: writes bytes at an offset, over what is there.
        expected: the payload's announced digest.
    """

    def __init__(self, store: Callable[[int, memoryview], None], expected: Digest) -> None:
        self.expected = expected
        self.offset = 0
        self._store = store
        self._hash = blake3()

    def write(self, offset: int, data: memoryview) -> None:
        """Take one chunk.

        Raises:
            OffsetMismatch: there is a gap or an overlap.
            PayloadTooLong: there are more bytes than announced, or than a chunk may have.

        Nothing is written then.
        """
        if offset != self.offset:
            raise OffsetMismatch(f"chunk at offset {offset}, expected {self.offset}")
        if len(data) > CHUNK_SIZE_BYTES:
            raise PayloadTooLong(f"a chunk of {len(data)} bytes; it may have {CHUNK_SIZE_BYTES}")
        if offset + len(data) > self.expected.size_bytes:
            raise PayloadTooLong(f"more bytes than the {self.expected.size_bytes} announced")
        self._store(offset, data)
        self._hash.update(data)
        self.offset += len(data)

    def finish(self) -> None:
        """Check the whole payload against the announced digest.

        Raises:
            DigestMismatch: size or hash differ; the receiver begins again.
        """
        received = Digest(self._hash.hexdigest(), self.offset)
        if received != self.expected:
            self.reset()
            raise DigestMismatch(
                f"received {received.size_bytes} bytes with BLAKE3 {received.blake3[:12]}…, "
                f"announced {self.expected.size_bytes} with {self.expected.blake3[:12]}…"
            )

    def reset(self) -> None:
        """Forget what was received and begin again at 0."""
        self._hash = blake3()
        self.offset = 0
