"""Models on their way out: chunks that are encoded once for all clients that pull at the time.

Reads files and fills messages. Knows nothing about sessions or calls.
"""

import os
from collections import OrderedDict

from common.tensors import Digest
from common.transfer import CHUNK_SIZE_BYTES, Piece
from protos.chunks import encode_piece


class OutgoingChunks:
    """The messages of the chunks that were asked for last, at most `most` of them."""

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._messages: OrderedDict[tuple[Digest, int], tuple[bytes, int]] = OrderedDict()

    def message(self, digest: Digest, file: int, offset: int) -> tuple[bytes, int]:
        """Return the message of a payload's chunk, and the offset of the one after it.

        A chunk ends where a multiple of CHUNK_SIZE_BYTES does, so that clients that resume
        anywhere soon share the others' messages.

        Args:
            digest: of the payload.
            file: descriptor of the file that holds it.
            offset: from 0 to the payload's size.

        Raises:
            OSError: the file can't be read, or is shorter than the payload.
        """
        key = (digest, offset)
        found = self._messages.pop(key, None) or _encode(digest, file, offset)
        self._messages[key] = found
        if len(self._messages) > self._most:
            self._messages.popitem(last=False)
        return found


def _encode(digest: Digest, file: int, offset: int) -> tuple[bytes, int]:
    size = digest.size_bytes
    end = min(size, (offset // CHUNK_SIZE_BYTES + 1) * CHUNK_SIZE_BYTES)
    data = os.pread(file, end - offset, offset)
    if len(data) < end - offset:
        raise OSError(f"a model of {size} bytes ends at {offset + len(data)}")
    return encode_piece(Piece(offset, memoryview(data), last=end == size)), end
