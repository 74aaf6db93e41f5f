"""A forked process that dies at one of its system calls that change files: before it, or half-way.

Knows nothing about what the process does.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

_CALLS = (
    *("open", "pwrite", "ftruncate", "fsync", "fdatasync"),
    *("rename", "replace", "link", "unlink", "mkdir", "rmdir"),
)
_WRITES = ("pwrite", "write")
_MEMORY = Path("/dev/shm")  # noqa: S108
KILLED = -signal.SIGKILL


class Tell(Protocol):
    """Tells the process that forked this one of an event."""

    def __call__(self, **event: object) -> None:
        """Tell of an event, a JSON object."""


@dataclass(frozen=True)
class Point:
    """Where a life is ended: before a step, or, of a write, after half of it."""

    step: int
    half: bool = False


class Life(NamedTuple):
    """How a life ended: the exit status, and what it told."""

    status: int
    told: Sequence[dict[str, Any]]

    @property
    def steps(self) -> list[str]:
        """The system calls that came; a killed life's last one did not, or only half."""
        return [event["step"] for event in self.told if "step" in event]

    @property
    def end(self) -> str:
        """Say how it ended: the status, or the error."""
        return next((e["error"] for e in self.told if "error" in e), f"status {self.status}")


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """Make a folder for a while: where a process is killed and no machine, no disk is needed."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.exists() else None) as name:
        yield Path(name)


def points(steps: Sequence[str], start: int = 0) -> Iterator[Point]:
    """Yield each point of a life from a step on."""
    for number in range(start, len(steps)):
        yield Point(number)
        if steps[number].split()[0] in _WRITES:
            yield Point(number, half=True)


def kind_of(step: str, point: Point) -> str:
    """Return what a point is a point of, e.g. "pwrite, half-way"."""
    return step.split(maxsplit=1)[0] + ", half-way" * point.half


class Forked:
    """A life in a forked process; `body` returns its status.

    gRPC must not have begun anything in this one.
    """

    def __init__(self, body: Callable[[Tell], int]) -> None:
        self._reader, writer = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._reader)
            write = os.write
            status = 70
            try:
                status = body(lambda **event: _write_whole(write, writer, event))
            except BaseException as error:  # noqa: BLE001 - it must not go on as its parent
                _write_whole(write, writer, {"error": _described(error)})
            finally:
                os._exit(status)
        os.close(writer)

    def kill(self) -> None:
        """End it now."""
        os.kill(self._child, signal.SIGKILL)

    def wait(self) -> Life:
        """Return how it ended."""
        with os.fdopen(self._reader, encoding="utf-8") as pipe:
            told = [json.loads(line) for line in pipe.read().splitlines()]
        return Life(os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1]), told)


def _described(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _write_whole(
    write: Callable[[int, bytes], int], descriptor: int, event: dict[str, object]
) -> None:
    write(descriptor, (json.dumps(event) + "\n").encode())


def count_steps(folder: Path, kill: Point | None, tell: Tell) -> None:
    """Tell of each system call that changes a folder from now on, and die at one of them."""
    lock, count = threading.Lock(), 0
    root = str(folder.resolve())

    def step(name: str, path: str, half: Callable[[], object] | None = None) -> None:
        nonlocal count
        if not path.startswith(root):
            return
        with lock:
            # Threads may take turns otherwise than before: half a write is one of that step on.
            dies = kill is not None and count >= kill.step and (half is not None or not kill.half)
            count += 1
            tell(step=f"{name} {Path(path).name}")
            if dies:
                if kill is not None and kill.half and half is not None:
                    half()
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401
            half = None
            if name == "pwrite":
                descriptor, data, offset = arguments
                half = lambda: call(descriptor, data[: len(data) // 2], offset)  # noqa: E731
            if name != "open" or arguments[1] & os.O_CREAT:
                step(name, _path(arguments[-1] if name == "link" else arguments[0], keywords), half)
            return call(*arguments, **keywords)

        return counting

    class File(io.FileIO):
        def __init__(self, file: Any, mode: str, opener: Any) -> None:  # noqa: ANN401
            step("open", _path(file, {}))
            super().__init__(file, mode, opener=opener)

        def write(self, data: Any, /) -> int:  # noqa: ANN401
            view, write = memoryview(data), super().write
            step("write", _path(self.fileno(), {}), lambda: write(view[: len(view) // 2]))
            return write(data)

    plain = io.open

    def opened(file: Any, mode: str = "r", *rest: Any, **keywords: Any) -> Any:  # noqa: ANN401
        if isinstance(file, int) or not set(mode) & set("wax"):
            return plain(file, mode, *rest, **keywords)
        names = ("buffering", "encoding", "errors", "newline", "closefd", "opener")
        given = dict(zip(names, rest, strict=False)) | keywords
        raw = File(file, mode.replace("b", "").replace("t", ""), given.get("opener"))
        buffer = io.BufferedWriter(raw)
        if "b" in mode:
            return buffer
        kept = {name: given[name] for name in ("encoding", "errors", "newline") if name in given}
        return io.TextIOWrapper(buffer, **kept)

    for name in _CALLS:
        setattr(os, name, counted(name, getattr(os, name)))
    io.open = builtins.open = opened


def _path(place: Any, keywords: dict[str, Any]) -> str:  # noqa: ANN401
    """Return the whole path of a name or of an open file's descriptor."""
    if isinstance(place, int):
        return str(Path(f"/proc/self/fd/{place}").readlink())
    if keywords.get("dir_fd") is not None:
        place = Path(_path(keywords["dir_fd"], {})) / place
    return str(os.path.abspath(place))  # noqa: PTH100 - resolves no link, which may be replaced
