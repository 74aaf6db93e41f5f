"""Processes of this machine: started, watched through /proc (Linux only), and ended.

Knows nothing about what they do, but where a server says that it listens.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from common.errors import RunFailed
from server.storage import layout
from server.storage.run_files import Line, read_json

_LOOK_SECONDS = 0.005
_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


class Process(AbstractContextManager["Process"]):
    """`python -m <arguments>`; killed at the end if it still runs.

    Args:
        arguments: of Python's -m.
        output: of all that it prints; None: `hear` reads its standard output.
        leashed: it ends when this process does, however that ended; Ctrl-C does not reach it.
        environment: its variables; None: this process's, and one torch thread.
    """

    def __init__(
        self,
        *arguments: object,
        output: Path | None = None,
        leashed: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        with nullcontext() if output is None else output.open("ab") as file:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", *["scripts.leash"] * leashed, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=file or subprocess.PIPE,
                stderr=file or subprocess.DEVNULL,
                text=True,
                env=environment or os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=leashed,
            )
        self.pid = self._popen.pid
        self._folder = Path(f"/proc/{self.pid}")

    def __exit__(self, *_: object) -> None:
        self.kill()

    def listening(self, run_dir: Path) -> Line | None:
        """Return what a server wrote of itself once it listens; None before that."""
        ready = read_json(run_dir / layout.READY)
        return ready if ready.get("pid") == self.pid else None

    def wait_until_listening(self, run_dir: Path) -> Line | None:
        """Return what a server wrote of itself once it listens; None if it ended before that."""
        while (ready := self.listening(run_dir)) is None and not self.ended:
            time.sleep(_LOOK_SECONDS)
        return ready

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
        with self._popen:
            self._popen.kill()

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end; say whether it came in time."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(max(0.0, seconds))
        return self.ended

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
