"""Files that survive a crash: written beside their place, synced, renamed, and synced again.

Knows nothing about what the files hold.
"""

import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

# The disk is told to begin each time that so much more waits for it.
_SYNC_EVERY_BYTES = 32 << 20


def sync_file(path: Path) -> None:
    """Make a file's bytes durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Make a folder's names durable."""
    sync_file(path)


class DurableFile:
    """A file that is written from its start to its end, and reaches the disk while it grows.

    Args:
        path: may exist; writing over an old file is cheaper than making one.
        size: of the file, in bytes.

    Raises:
        OSError: the file can't be made.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(self._descriptor, size)
        except OSError:
            os.close(self._descriptor)
            raise
        self._unsynced = 0
        self._sync: threading.Thread | None = None
        self._error: OSError | None = None

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at an offset.

        Raises:
            OSError: the disk is full, or fails.
        """
        self._unsynced += len(data)
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written
        if self._unsynced >= _SYNC_EVERY_BYTES and not (self._sync and self._sync.is_alive()):
            self._unsynced = 0
            # Of a descriptor of its own, since `close` does not wait for it.
            descriptor = os.dup(self._descriptor)
            self._sync = threading.Thread(target=self._sync_early, args=(descriptor,))
            self._sync.start()

    def sync(self) -> None:
        """Make the file's bytes durable.

        Raises:
            OSError: the disk fails.
        """
        if self._sync is not None:
            self._sync.join()
        # The system tells of an error once; it may have told the early sync.
        if self._error is not None:
            raise self._error
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; again is fine."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _sync_early(self, descriptor: int) -> None:
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            self._error = error
        finally:
            os.close(descriptor)


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Replace a file by `data`: after a crash the old file is there or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    _write(temporary, data)
    temporary.replace(path)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Replace a file by `value` as JSON, as `replace_file` does."""
    replace_file(path, _encoded(value))


def write_new_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Write `value` as JSON and make the bytes durable, but not yet the name."""
    _write(path, _encoded(value))


def _encoded(value: Any) -> bytes:  # noqa: ANN401
    return (json.dumps(value, indent=1) + "\n").encode()


def _write(path: Path, data: bytes | memoryview) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with its own digest in the field "blake3", for `read_sealed`."""
    return {**value, "blake3": _digest_of(value)}


def read_sealed(path: Path) -> dict[str, Any]:
    """Return a sealed object from a JSON file, without its seal.

    Raises:
        OSError: the file can't be read.
        ValueError: it is not as it was written.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError("no JSON") from error
    if not isinstance(value, dict) or value.pop("blake3", None) != _digest_of(value):
        raise ValueError("its content is not what was written")
    return value


def _digest_of(value: Mapping[str, Any]) -> str:
    return blake3(json.dumps(value, sort_keys=True).encode()).hexdigest()


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines to the end of a file, durably."""
    with path.open("a", encoding="utf-8", newline="") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def link(source: Path, target: Path) -> None:
    """Make `target` another name of `source`, in place of what it was; durable once synced."""
    temporary = target.with_name(target.name + ".tmp")
    temporary.unlink(missing_ok=True)
    os.link(source, temporary)
    temporary.replace(target)
    # If `target` was a name of `source` already, the renaming did nothing.
    temporary.unlink(missing_ok=True)
