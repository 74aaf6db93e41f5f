"""The runs of a folder, each read once and then only what is new, for several pages at a time.

Reads only. Knows nothing about pages.
"""

from __future__ import annotations

import sys
import threading
from functools import lru_cache
from pathlib import Path

from common.errors import InputError
from scripts.summary import Summary, by_round, summary_of
from scripts.viewing.tables import shown
from server.storage import layout
from server.storage.run_files import Line, Lines, RunFiles, find_runs

# Runs that are kept; the lines of 1,000 rounds of 100 clients take some 150 MB once looked at.
_MOST_KEPT = 200


def named_task() -> str | None:
    """Return the task of one's own that ./scripts/dashboard was told of."""
    return sys.argv[2] if len(sys.argv) > 2 else None


class Run:
    """A run directory, which threads may read at the same time."""

    def __init__(self, files: RunFiles) -> None:
        self.files = files
        self.path = files.path
        # Among those of its folder; the run's own id may be another's, too.
        self.name = files.path.name
        self._lock = threading.Lock()

    @property
    def damaged(self) -> int:
        """Return how many lines were left out of what was read so far."""
        files = self.files
        return files.metrics.damaged + files.clients.damaged + files.evaluations.damaged

    @property
    def missing(self) -> int:
        """Return how many of the last committed rounds have no row, once the run has ended."""
        try:
            with self._lock:
                return self.files.missing_rows
        except OSError as error:
            raise _unreadable(error) from error

    @property
    def missing_lines(self) -> dict[str, int]:
        """Return how many rows other files lack, by file, once the run has ended."""
        try:
            with self._lock:
                return self.files.missing_lines
        except OSError as error:
            raise _unreadable(error) from error

    def summary(self) -> Summary:
        """Return the committed rounds.

        Raises:
            InputError: as for the others, the file can't be read.
        """
        return summary_of(self._read(self.files.metrics))

    def clients(self) -> list[Line]:
        """Return the rows of clients and rounds."""
        return self._read(self.files.clients)

    def evaluations(self) -> list[Line]:
        """Return the evaluations by class, in the order of their rounds."""
        return by_round(self._read(self.files.evaluations))

    def models(self) -> dict[str, Line]:
        """Return the metadata of the best model, and of the latest if that is another round's.

        The initial model, of round 0, is none of them: nobody has trained it.
        """
        found = {
            name: model
            for name in ("best", "global")
            if (model := self.files.model(name)) and model.get("round") != 0
        }
        if len(found) == 2 and found["best"].get("round") == found["global"].get("round"):
            del found["global"]
        return found

    def option(self, name: str) -> str:
        """Return a resolved option as text."""
        return shown(self.files.options.get(name))

    def _read(self, lines: Lines) -> list[Line]:
        try:
            with self._lock:
                return list(lines.all())
        except OSError as error:
            raise _unreadable(error) from error


def open_run(path: Path) -> Run:
    """Return the run of a directory: the same one until its config.json is another.

    Raises:
        InputError: there is no run, or its config.json is damaged.
    """
    try:
        status = (path / layout.CONFIG).stat()
    except OSError as error:
        raise _unreadable(error) from error
    return _opened(path, status.st_ino, status.st_mtime_ns)


def names_in(folder: Path) -> list[str]:
    """Return the names of a folder's run directories, the newest first.

    Raises:
        InputError: the folder can't be read.
    """
    try:
        return [path.name for path in find_runs(folder)]
    except OSError as error:
        raise _unreadable(error) from error


@lru_cache(_MOST_KEPT)
def _opened(path: Path, inode: int, changed: int) -> Run:  # noqa: ARG001
    return Run(RunFiles(path))


def _unreadable(error: OSError) -> InputError:
    return InputError(f"{error.filename}: can't be read: {error.strerror}")
