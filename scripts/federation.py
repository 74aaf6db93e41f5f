"""A training as processes of this machine: a server and its clients, followed and ended.

Reads the run directory only. Knows nothing about what is shown of it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import Self

from common.errors import InputError, RunFailed
from common.printable import printable
from common.tasks.registry import BUILT_IN
from server.options import ServerOptions
from server.storage import layout
from server.storage.run_files import Line, Lines, read_json

_POLL_SECONDS = 0.1
_END_SECONDS = 5.0


class Training:
    """A server and clients that begin and end with the `with` block.

    Args:
        argv: the server's flags.
        options: what they say, as `server.configuration.parse` returns it.
        clients: the partitions that each client process holds, as its --partition.
        environments: more variables of a client process, by its partitions.
    """

    def __init__(
        self,
        argv: Sequence[str],
        options: ServerOptions,
        clients: Sequence[str],
        environments: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.folder = options.run.run_dir or Path()
        # Where the server listens; None where the run had ended before.
        self.address: str | None = None
        self._argv = argv
        self._options = options
        self._clients = clients
        self._environments = environments or {}
        self._logs = self.folder / "logs"
        self._is_new = not self.folder.exists()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._rows = Lines(self.folder / layout.METRICS)
        self._known = 0
        self._failures = Lines(
            self.folder / layout.LOG, lambda line: line.get("event") == "client failed"
        )
        self._known_failures = 0
        self._told: set[tuple[str, str]] = set()

    def __enter__(self) -> Self:
        try:
            self._start_all()
        except BaseException as error:
            self._end()
            # Only a server that failed may have left in its log what is not told here.
            if not isinstance(error, RunFailed):
                self._remove_unbegun()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def rows(self) -> Iterator[Line]:
        """Yield each round's row of metrics as it is committed, until the server has ended.

        Raises:
            RunFailed: a process did.
        """
        if self.address is None:
            return
        server, clients = self._processes[0], self._processes[1:]
        while True:
            ended = server.poll() is not None
            rows = self._rows.all()
            yield from rows[self._known :]
            self._known = max(self._known, len(rows))
            if ended:
                break
            for held, client in zip(self._clients, clients, strict=True):
                if client.poll() not in (None, 0):
                    raise RunFailed(f"client {held}: {_last_words(self._log_of(held))}")
            time.sleep(_POLL_SECONDS)
        if server.wait() != 0:
            raise RunFailed(_last_words(self._logs / "server.log"))
        # One that never reached the server, as when the run had ended before, waits for nothing.
        until = time.monotonic() + _END_SECONDS
        for client in clients:
            with suppress(subprocess.TimeoutExpired):
                client.wait(max(0.0, until - time.monotonic()))

    def failures(self) -> Iterator[str]:
        """Yield a line for each client whose work has failed, once for each reason."""
        found = self._failures.all()[self._known_failures :]
        self._known_failures += len(found)
        for line in found:
            client, reason = str(line.get("client")), str(line.get("reason"))
            if (client, reason) not in self._told:
                self._told.add((client, reason))
                yield printable(f"{client} sends no update: {line.get('message') or reason}")

    def _start_all(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._logs.mkdir(mode=0o700, exist_ok=True)
        given = [] if "--run-dir" in " ".join(self._argv) else ["--run-dir", str(self.folder)]
        # As variables, because flags go before them. All clients, so that the first cohort is not
        # of those that are there first.
        everyone = str(self._options.split.num_partitions)
        defaults = {"FOLKMOOT_BIND": "127.0.0.1:0", "FOLKMOOT_MIN_CLIENTS": everyone}
        self._known = len(self._rows.all())
        self._known_failures = len(self._failures.all())
        log = self._logs / "server.log"
        server = self._start(["server", *self._argv, *given], log, defaults | os.environ)
        self.address = _wait_for_address(server, self.folder, log)
        if self.address is None:
            return
        run = self._options.run
        task = [] if run.task in BUILT_IN else ["--task", run.task]
        endpoint = self._options.process.otlp_endpoint
        traced = [] if endpoint is None else ["--otlp-endpoint", endpoint]
        for held in self._clients:
            folders = ["--data-dir", str(run.data_dir), "--state-dir", str(self.folder / "clients")]
            self._start(
                ["client", "--server", self.address, "--partition", held, *folders, *task, *traced],
                self._log_of(held),
                {**os.environ, **self._environments.get(held, {})},
            )

    def _log_of(self, held: str) -> Path:
        return self._logs / f"client-{held}.log"

    def _start(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "scripts.leash", *arguments],
                # Closed when this process ends, even by SIGKILL.
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                env=environment,
                # So that Ctrl-C reaches only this process, which then ends the others in order.
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def _remove_unbegun(self) -> None:
        if self._is_new and list(self.folder.glob("*")) == [self._logs]:
            rmtree(self.folder)

    def _end(self) -> None:
        # The second Ctrl-C of someone in a hurry must not leave a process behind.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        running = [process for process in self._processes if process.poll() is None]
        for process in running:
            process.terminate()
        until = time.monotonic() + _END_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        signal.signal(signal.SIGINT, before)


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP be what Ctrl-C is: a KeyboardInterrupt, so that blocks are left."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


def spread(partitions: int, clients: int) -> list[str]:
    """Spread partitions over at most so many clients, as their --partition.

    >>> spread(5, 3)
    ['0-1', '2-3', '4']
    """
    clients = min(clients, partitions)
    held, start = [], 0
    for client in range(clients):
        size = partitions // clients + (client < partitions % clients)
        held.append(str(start) if size == 1 else f"{start}-{start + size - 1}")
        start += size
    return held


def _wait_for_address(server: subprocess.Popen[bytes], folder: Path, log: Path) -> str | None:
    """Return where the server listens, once it does; None if it ended, well, before that."""
    while True:
        ended = server.poll()
        if ended == 0:
            return None
        if ended is not None:
            error = _last_words(log)
            raise InputError(error) if ended == 2 else RunFailed(error)
        ready = read_json(folder / layout.READY)
        if ready.get("pid") == server.pid:
            return str(ready["address"])
        time.sleep(_POLL_SECONDS)


def _last_words(log: Path) -> str:
    """Return the last `error: ...` line of a log, without its beginning."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else f"a process ended; {log} tells why"
