"""Files that survive a crash: written beside their place, synced, renamed, and synced again.

Knows nothing about what the files hold.
"""

import json
import os
from pathlib import Path
from typing import Any


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
