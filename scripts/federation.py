"""A training as processes of this machine: a server and its clients, followed and ended.

Reads the run directory only. Knows nothing about what is shown of it.
"""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import Self

from common.errors import InputError, RunFailed
from common.printable import printable
from scripts.testbed.processes import Process
from server.configuration import own_code
from server.options import ServerOptions
from server.storage import layout
from server.storage.run_files import Line, Lines

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
        self._processes: list[Process] = []
        self._rows = Lines(self.folder / layout.METRICS)
        self._failures = Lines(
            self.folder / layout.LOG, lambda line: line.get("event") == "client failed"
        )
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
            ended = server.ended
            yield from self._rows.new()
            if ended:
                break
            for held, client in zip(self._clients, clients, strict=True):
                if client.status:
                    raise RunFailed(f"client {held}: {_last_words(self._log_of(held))}")
            time.sleep(_POLL_SECONDS)
        if server.status:
            raise RunFailed(_last_words(self._logs / "server.log"))
        # One that never reached the server, as when the run had ended before, waits for nothing.
        until = time.monotonic() + _END_SECONDS
        for client in clients:
            client.ends_within(until - time.monotonic())

    def failures(self) -> Iterator[str]:
        """Yield a line for each client whose work has failed, once for each reason."""
        for line in self._failures.new():
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
        # Only what comes from now on is told.
        self._rows.new()
        self._failures.new()
        log = self._logs / "server.log"
        server = Process(
            *("server", *self._argv, *given),
            output=log,
            leashed=True,
            environment=defaults | os.environ,
        )
        self._processes.append(server)
        ready = server.wait_until_listening(self.folder)
        if ready is None:
            if server.status:
                error = _last_words(log)
                raise InputError(error) if server.status == 2 else RunFailed(error)
            return
        self.address = str(ready["address"])
        run = self._options.run
        own = own_code(self._options).split()
        endpoint = self._options.process.otlp_endpoint
        traced = [] if endpoint is None else ["--otlp-endpoint", endpoint]
        for held in self._clients:
            folders = ["--data-dir", str(run.data_dir), "--state-dir", str(self.folder / "clients")]
            client = Process(
                *("client", "--server", self.address, "--partition", held),
                *(*folders, *own, *traced),
                output=self._log_of(held),
                leashed=True,
                environment={**os.environ, **self._environments.get(held, {})},
            )
            self._processes.append(client)

    def _log_of(self, held: str) -> Path:
        return self._logs / f"client-{held}.log"

    def _remove_unbegun(self) -> None:
        if self._is_new and list(self.folder.glob("*")) == [self._logs]:
            rmtree(self.folder)

    def _end(self) -> None:
        # The second Ctrl-C of someone in a hurry must not leave a process behind.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for process in self._processes:
            process.send(signal.SIGTERM)
        until = time.monotonic() + _END_SECONDS
        for process in self._processes:
            process.ends_within(until - time.monotonic())
            process.kill()
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


def _last_words(log: Path) -> str:
    """Return the last `error: ...` line of a log, without its beginning."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else f"a process ended; {log} tells why"
