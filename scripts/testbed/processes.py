"""Processes that are measured: started, watched through /proc, and ended (Linux only).

Knows nothing about what they do.
"""

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from common.errors import RunFailed

_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


class Process(AbstractContextManager["Process"]):
    """`python -m <arguments>` with one torch thread; killed at the end if it still runs."""

    def __init__(self, *arguments: object, output: Path | None = None) -> None:
        file: Any = subprocess.DEVNULL if output is None else output.open("ab")
        self._popen = subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.pid = self._popen.pid
        self._folder = Path(f"/proc/{self.pid}")

    def __exit__(self, *_: object) -> None:
        self.kill()

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._popen.stdin is not None  # noqa: S101 - a pipe, by construction
        self._popen.stdin.write(line + "\n")
        self._popen.stdin.flush()

    def hear(self) -> str:
        """Return the next line of its standard output.

        Raises:
            RunFailed: it ended before.
        """
        assert self._popen.stdout is not None  # noqa: S101 - a pipe, by construction
        line = self._popen.stdout.readline()
        if not line:
            raise RunFailed(f"{self._popen.args!r} ended with {self._popen.wait()}")
        return line.strip()

    @property
    def ended(self) -> bool:
        """Say whether it has ended."""
        return self._popen.poll() is not None

    @property
    def status(self) -> int | None:
        """Return its exit status, None while it runs."""
        return self._popen.poll()

    def send(self, number: int) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._popen.kill()
        self._popen.wait()

    def wait(self) -> None:
        """Wait for its end.

        Raises:
            RunFailed: its status is not 0.
        """
        status = self._popen.wait()
        if status:
            raise RunFailed(f"{self._popen.args!r} ended with {status}")

    def cpu_seconds(self) -> float:
        """Return the CPU seconds used so far; 0 once it has ended."""
        try:
            fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return 0.0
        return (int(fields[11]) + int(fields[12])) * _TICK_SECONDS

    def memory(self, field: str) -> int:
        """Return a field of /proc/PID/status in bytes, e.g. RssAnon; 0 once it has ended."""
        try:
            lines = (self._folder / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return next((int(x.split()[1]) * 1024 for x in lines if x.startswith(field + ":")), 0)

    def count(self, folder: str) -> int:
        """Return the entries of a folder of /proc/PID, e.g. fd or task; 0 once it has ended."""
        try:
            return len(os.listdir(self._folder / folder))  # noqa: PTH208 - nothing else is wanted
        except (FileNotFoundError, ProcessLookupError):
            return 0

    def forget_peak(self) -> None:
        """Let VmHWM begin anew."""
        (self._folder / "clear_refs").write_text("5")
