"""A training of real processes that can be disturbed: each client behind a proxy of its own.

Knows what runs and how far it is, from the run directory; nothing about when to disturb it.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from common.errors import RunFailed
from scripts.resilience.invariants import Level
from scripts.testbed.processes import Process
from scripts.testbed.proxy import Proxy, proxying
from server.storage import layout
from server.storage.run_files import Line, Lines

TASK = "scripts.resilience.tasks:Steps"
KEEP_ROUNDS = 3
_LOOK_SECONDS = 0.02
# Below the ports that systems choose from: while the server is down, nobody else takes its own.
_PORTS = range(10_000, 30_000)


class Training(ExitStack):
    """One server and its clients in a folder; all of them end with it.

    Args:
        folder: of this training; holds the run directory and the processes' output.
        rounds: to train.
        clients: how many partitions, all of which report in each round.
        training_seconds: that each training of a client takes.
        patience: seconds until `wait` gives up.
        deadline: seconds that a cohort has to report.
        quorum: updates that suffice then; of all clients if not given.
    """

    def __init__(
        self,
        folder: Path,
        rounds: int,
        clients: int,
        training_seconds: float,
        patience: float,
        deadline: float = 60.0,
        quorum: int | None = None,
    ) -> None:
        super().__init__()
        self.run = folder / "run"
        self.reached = (0, 0)  # The newest round, and its accepted updates.
        self.levels: dict[tuple[int, int], Level] = {}
        self.clients: list[Process] = []
        self.proxies: list[Proxy] = []
        self._folder = folder
        self._address = f"127.0.0.1:{_free_port()}"
        self._flags: tuple[object, ...] = (
            *("--task", TASK, "--rounds", rounds, "--run-dir", self.run, "--bind", self._address),
            *("--admin-bind", "127.0.0.1:0", "--min-clients", clients, "--report-goal", clients),
            *(
                "--quorum",
                quorum or clients,
                "--num-partitions",
                clients,
                "--keep-rounds",
                KEEP_ROUNDS,
            ),
            *("--lease", 8, "--report-deadline", deadline, "--max-attempts", 100),
            *("--hyperparameters", json.dumps({"seconds": training_seconds})),
        )
        self._log = Lines(self.run / layout.LOG)
        self._sampled: int | None = None
        self._later: list[tuple[float, Callable[[], object]]] = []
        self._until = time.monotonic() + patience
        self._count = clients
        self.server: Process

    # ---------------------------------------------------------------- processes

    def start_behind_proxies(self) -> None:
        """Start the server, and each client behind its proxy."""
        self._start_server()
        for index in range(self._count):
            self.proxies.append(self.enter_context(proxying(self._address)))
            self.clients.append(self._start_client(index, self.proxies[-1].address))

    def start_together(self) -> None:
        """Start the server, and all clients in one process without a proxy."""
        self._start_server()
        self.clients.append(self._start_client(f"0-{self._count - 1}", self._address))

    def restart_server(self) -> None:
        """Kill the server, and start it again on its port."""
        self.server.kill()
        self._sampled = None
        self._start_server("--resume")

    def restart_client(self, index: int) -> None:
        """Kill a client, and start it again."""
        self.clients[index].kill()
        self.clients[index] = self._start_client(index, self.proxies[index].address)

    def serving(self) -> bool:
        """Say whether the server listens."""
        return self.server.listening(self.run) is not None

    def _start_client(self, partition: object, address: str) -> Process:
        arguments = ("--server", address, "--partition", partition, "--task", TASK)
        output = self._folder / f"client-{partition}.log"
        return self._start("client", *arguments, "--max-wait", 60, output=output)

    def _start_server(self, *more: str) -> None:
        output = self._folder / "server.log"
        self.server = self._start("server", *self._flags, *more, output=output)

    def _start(self, *arguments: object, output: Path) -> Process:
        with uninterrupted():
            return self.enter_context(Process(*arguments, output=output))

    @property
    def statuses(self) -> dict[str, int | None]:
        """Return each process's exit status."""
        clients = {f"client-{i}": client.status for i, client in enumerate(self.clients)}
        return {"server": self.server.status, **clients}

    # ----------------------------------------------------------------- progress

    def later(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something during a `wait`, after so many seconds."""
        self._later.append((time.monotonic() + seconds, action))

    def undone(self) -> bool:
        """Say whether nothing is to be done later."""
        return not self._later

    def wait(self, reached: Callable[[], object], ending: bool = False) -> None:
        """Wait until something holds; follow the run meanwhile.

        Raises:
            RunFailed: it takes too long, or (unless `ending`) a process ended by itself.
        """
        while not reached():
            self._look()
            if not ending and any(status is not None for status in self.statuses.values()):
                raise RunFailed(f"a process ended too early: {self.statuses}")
            if time.monotonic() > self._until:
                raise RunFailed(f"the run did not get on; it reached {self.reached}")
            time.sleep(_LOOK_SECONDS)

    def wait_for_end(self) -> None:
        """Wait until all processes have ended."""
        self.wait(lambda: None not in self.statuses.values(), ending=True)
        self._look()

    def _look(self) -> None:
        now = time.monotonic()
        due = [entry for entry in self._later if entry[0] <= now]
        self._later = [entry for entry in self._later if entry[0] > now]
        for _, action in due:
            action()
        for event in self._log.new():
            self._note(event)
        if self._sampled is not None:
            self._sample(self._sampled)

    def _note(self, event: Line) -> None:
        match event.get("event"):
            case "round began":
                self.reached = max(self.reached, (event["round"], 0))
                self._sampled = event["round"]
            case "update accepted":
                self.reached = max(self.reached, (event["round"], event["accepted"]))
            case "round committed":
                self._sampled = None

    def _sample(self, number: int) -> None:
        """Keep the least that the server's process used in a round."""
        server = self.server
        level = Level(server.memory("RssAnon"), server.count("fd"), server.count("task"))
        known = self.levels.get((server.pid, number), level)
        if all(level):  # Else it has ended in the meantime.
            least = Level(*map(min, zip(level, known, strict=True)))
            self.levels[server.pid, number] = least


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let signals wait until all that is begun can be ended."""
    waiting: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, lambda came, _: waiting.append(came)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])


def _free_port() -> int:
    while True:
        port = random.choice(_PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
