"""Files that survive a crash: written beside their place, synced, renamed, and synced again.

Knows nothing about what the files hold.
"""

import json
import os
import threading
from pathlib import Path
from typing import Any

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
        os.ftruncate(self._descriptor, size)
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


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Replace a file by `value` as JSON: after a crash the old file is there or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def link(source: Path, target: Path) -> None:
    """Make `target` another name of `source`, in place of what it was; durable once synced."""
    temporary = target.with_name(target.name + ".tmp")
    temporary.unlink(missing_ok=True)
    os.link(source, temporary)
    temporary.replace(target)
    # To replace one name of a file by another does nothing, and leaves both.
    temporary.unlink(missing_ok=True)
