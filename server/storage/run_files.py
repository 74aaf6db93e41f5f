"""What a run directory holds, for those who only look: pages, reports, trackers.

Never writes and never locks, so it can't disturb a run; works after the server is gone. What is
half-written isn't there yet. Needs no torch.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from common.errors import CheckpointError, InputError
from server.storage import layout

Line = dict[str, Any]

# Of a run directory. It grows when a reader of an older one would take something wrongly; what is
# only added needs no new one.
FORMAT = 1
_LARGEST = sys.float_info.max


class Lines:
    """A file of JSON objects, one a line, that may grow, or be written anew, while it is read.

    Args:
        path: need not exist.
        wanted: whether an object is kept; all are if not given.
    """

    def __init__(self, path: Path, wanted: Callable[[Line], bool] = lambda _: True) -> None:
        self._path = path
        self._wanted = wanted
        self._given = 0
        self._begin(inode=0)

    def _begin(self, inode: int) -> None:
        self._inode = inode
        self._read = 0
        self._found: list[Line] = []
        # Lines that are no JSON objects, and are left out.
        self.damaged = 0

    def all(self) -> list[Line]:
        """Return the complete lines, of which only the new ones are read; none without a file.

        Raises:
            OSError: the file can't be read.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            self._begin(inode=0)
            return []
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._read:
                self._begin(status.st_ino)
            file.seek(self._read)
            new = file.read()
        complete = new[: new.rfind(b"\n") + 1]
        self._read += len(complete)
        values = _parse(complete.splitlines())
        found = [value for value in values if isinstance(value, dict)]
        self._found += filter(self._wanted, found)
        self.damaged += len(values) - len(found)
        return self._found

    def new(self) -> list[Line]:
        """Return the complete lines beyond those that earlier calls returned.

        Raises:
            OSError: the file can't be read.
        """
        lines = self.all()[self._given :]
        self._given += len(lines)
        return lines


def _parse(lines: list[bytes]) -> list[Any]:
    """Return each line's JSON value; None for a damaged one."""
    try:
        # At once takes half the time and memory of one after the other.
        values = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        values = []
    if len(values) == len(lines):
        return list(values)
    values = []
    for line in lines:
        try:
            values.append(json.loads(line))
        except ValueError:
            values.append(None)
    return values


class RunFiles:
    """A run directory; its lines are those of the files of the same name.

    Args:
        path: the run directory.

    Raises:
        InputError: there is no run, its config.json is damaged, or a newer Folkmoot wrote it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        config = read_json(path / layout.CONFIG)
        check_format(path, config)
        if not isinstance(config.get("options"), dict):
            said = "is damaged" if (path / layout.CONFIG).exists() else "is not there"
            raise InputError(f"{path} is no run directory: its {layout.CONFIG} {said}")
        self.run_id = str(config.get("run_id", path.name))
        # The resolved options, by their flags' names with underscores.
        self.options: dict[str, Any] = config["options"]
        self.versions: dict[str, str] = config.get("versions", {})
        self.metrics = Lines(path / layout.METRICS)
        self.clients = Lines(path / layout.CLIENTS)
        self.evaluations = Lines(path / layout.EVALUATIONS)

    @property
    def running(self) -> bool:
        """Whether a server of this machine works on it."""
        return is_running(self.path)

    @property
    def missing_rows(self) -> int:
        """How many of the last committed rounds have no row in metrics.jsonl.

        Raises:
            OSError: the file can't be read.
        """
        # While a server works, a round's row may be about to follow its commit.
        if self.running:
            return 0
        rounds = (row.get("round") for row in self.metrics.all())
        last = max((number for number in rounds if type(number) is int), default=0)
        return max(0, self._committed - last)

    @property
    def missing_lines(self) -> dict[str, int]:
        """How many lines clients.jsonl and evaluations.jsonl lack, by file; empty if none.

        Of an older run, or one that a server works on, that is not known, and empty.

        Raises:
            OSError: a file can't be read.
        """
        number = self._committed
        if self.running or not number:
            return {}
        record = read_json(layout.round_folder(self.path, number) / layout.RECORD)
        counts = record.get("lines", {})
        found = {layout.CLIENTS: self.clients, layout.EVALUATIONS: self.evaluations}
        lost = {name: counts.get(name, 0) - len(lines.all()) for name, lines in found.items()}
        return {name: count for name, count in lost.items() if count > 0}

    @property
    def _committed(self) -> int:
        """The last committed round."""
        return max(layout.committed(self.path), default=0)

    def model(self, name: str) -> Line | None:
        """Return the metadata of models/global or models/best; None before the first round."""
        return read_json(layout.model(self.path, name).with_suffix(".json")) or None


def check_format(path: Path, config: Mapping[str, Any]) -> None:
    """Check that this version reads a run directory of such a config.json; an old one has no field.

    Raises:
        CheckpointError: a newer Folkmoot wrote it.
    """
    number = config.get("format", FORMAT)
    if not isinstance(number, int) or number > FORMAT:
        raise CheckpointError(
            f"{path} has format {number}, and this Folkmoot reads formats up to {FORMAT}; use the "
            "Folkmoot that wrote it, or a newer one"
        )


def numbers(row: Line) -> dict[str, float]:
    """Return what is a finite number in a row of metrics; of a task's own, as global_<name>."""
    return own_numbers(row) | {name: value for name, value in row.items() if _is_number(value)}


def own_numbers(row: Line) -> dict[str, float]:
    """Return a task's own metrics in a row of metrics, as global_<name> and client_<name>.

    Those that are called as one of the row's columns are left out.
    """
    own = {side: row.get(f"{side}_metrics") for side in ("global", "client")}
    return {
        column: value
        for side, metrics in own.items()
        if isinstance(metrics, dict)
        for name, value in metrics.items()
        if (column := f"{side}_{name}") not in row and _is_number(value)
    }


def _is_number(value: object) -> bool:
    # Of an int beyond any float, JSON may be full.
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST  # type: ignore[operator]


def is_running(run_dir: Path) -> bool:
    """Return whether a server of this machine works on a run directory."""
    pid = read_json(run_dir / layout.READY).get("pid")
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # Another user's.
    return True


def find_runs(folder: Path) -> list[Path]:
    """Return the run directories in a folder, the newest first; damaged ones are among them."""
    return newest_first(entry.parent for entry in folder.glob(f"*/{layout.CONFIG}"))


def newest_first(runs: Iterable[Path]) -> list[Path]:
    """Return run directories by when a server last began or resumed them, the newest first."""

    def began(run: Path) -> tuple[float, str]:
        config = run / layout.CONFIG
        return (config if config.exists() else run).stat().st_mtime, run.name

    return sorted(runs, key=began, reverse=True)


def read_json(path: Path) -> Line:
    """Return a file's JSON object; empty if there is none or it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
