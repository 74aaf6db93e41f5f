"""The chaos run: a training under a seed's faults, judged by the invariants."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.commands import command
from common.errors import RunFailed
from scripts.resilience import invariants
from scripts.resilience.federation import KEEP_ROUNDS, Training
from scripts.resilience.schedule import CLIENTS, SHORT_DEADLINE, Fault, Kind, Shape, abandons, plan
from scripts.testbed.proxy import Proxy
from server.storage import layout
from server.storage.run_files import Line, Lines

_TRAINING_SECONDS = 0.3
_PATIENCE = 240.0
_DELAY_SECONDS = 0.03
# Where attempts may be abandoned.
_QUORUM = 2
_NAMES = [f"client-{index}" for index in range(CLIENTS)]


@dataclass
class Result:
    """What became of a seed."""

    seed: int
    seconds: float = 0.0
    server_kills: int = 0
    client_kills: int = 0
    pauses: int = 0
    connection_faults: int = 0
    abandoned: int = 0
    digest_equal: bool = False
    violations: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Say whether all invariants held."""
        return not self.violations


@dataclass(frozen=True)
class Reference:
    """How the undisturbed run ended."""

    metrics: list[Line]
    model: bytes


def measure(seeds: range, shape: Shape) -> Iterator[Result]:
    """Run each seed; the undisturbed run first, once."""
    with ExitStack() as ends:
        reference = _undisturbed(_folder("undisturbed", ends), ends, shape)
    _say(f"undisturbed run of {len(reference.metrics)} rounds: done")
    for seed in seeds:
        with ExitStack() as ends:
            result = _run(seed, _folder(f"seed-{seed}", ends), reference, shape)
            if not result.held:
                ends.pop_all()
        yield result


def _undisturbed(folder: Path, ends: ExitStack, shape: Shape) -> Reference:
    with Training(folder, shape.rounds, CLIENTS, 0.0, _PATIENCE) as training:
        training.start_together()
        training.wait_for_end()
        problems = invariants.ended_well(training.statuses)
    if problems:
        ends.pop_all()
        raise RunFailed(f"the undisturbed run: {', '.join(problems)}; its files are in {folder}")
    return Reference(_rows(training.run / layout.METRICS), _model(training.run))


def _run(seed: int, folder: Path, reference: Reference, shape: Shape) -> Result:
    began = time.monotonic()
    few = (SHORT_DEADLINE, _QUORUM) if abandons(seed) else ()
    with Training(folder, shape.rounds, CLIENTS, _TRAINING_SECONDS, _PATIENCE, *few) as training:
        disturber = Disturber(seed, training)
        problems = []
        try:
            training.start_behind_proxies()
            for fault in plan(seed, shape):
                disturber.strike(fault)
            training.wait_for_end()
        except RunFailed as error:
            problems.append(str(error))
        problems += invariants.ended_well(training.statuses)
    result = disturber.result(time.monotonic() - began)
    result.digest_equal = _model(training.run) == reference.model
    if not result.digest_equal and not abandons(seed):
        problems.append("the final model's bytes are not those of the undisturbed run")
    result.violations = problems + _problems(training, result, reference, shape)
    for problem in result.violations:
        _say(f"seed {seed}: {problem}")
    if result.violations:
        _say(f"repeat with: {command('chaos')} --seed {seed}; its files are in {folder}")
    return result


def _problems(training: Training, result: Result, reference: Reference, shape: Shape) -> list[str]:
    # Imports torch, which other commands need not wait for.
    from scripts.resilience import replay

    run, server = training.run, training.server.pid
    may_abandon = abandons(result.seed)
    metrics, log = _rows(run / layout.METRICS), _rows(run / layout.LOG)
    clients = _rows(run / layout.CLIENTS)
    client_logs = {name: _rows(run.parent / f"{name}.log") for name in _NAMES}
    files = [str(path.relative_to(run)) for path in run.rglob("*") if not path.is_dir()]
    result.abandoned = sum(event["event"] == "round abandoned" for event in log)
    client_faults = result.client_kills + result.pauses + result.connection_faults
    levels = (training.levels.get((server, number)) for number in (shape.quiet_round, shape.rounds))
    return [
        *invariants.rounds_grow_by_one(metrics, log, shape.rounds),
        *invariants.counted_once(
            clients, _NAMES, shape.rounds, _QUORUM if may_abandon else CLIENTS
        ),
        *invariants.acknowledged_kept(clients, log, client_logs),
        *invariants.recomputed_models(metrics, replay.digests(run, clients)),
        # Where a round may end without some clients, it is another training.
        *([] if may_abandon else invariants.same_models(metrics, reference.metrics)),
        *invariants.enough(result.abandoned, int(may_abandon), "abandoned attempts"),
        *invariants.server_settled(*levels),
        *invariants.no_orphans(files, shape.rounds, KEEP_ROUNDS),
        *invariants.enough(result.server_kills, shape.server_kills, "server kills"),
        *invariants.enough(client_faults, shape.client_faults, "client faults"),
    ]


class Disturber:
    """Does to a training what a schedule says, and counts what hit."""

    def __init__(self, seed: int, training: Training) -> None:
        self._seed = seed
        self._training = training
        self._began = time.monotonic()
        self._hits: Counter[Kind] = Counter()

    def strike(self, fault: Fault) -> None:
        """Wait until a fault is due and has something to hit, then let it happen."""
        training = self._training
        training.wait(lambda: training.reached >= (fault.round, fault.accepted))
        due = time.monotonic() + fault.after
        training.wait(lambda: time.monotonic() >= due)
        if fault.kind is Kind.CALM:
            self._calm()
            return
        if fault.kind is Kind.KILL_SERVER:
            training.wait(training.serving)
            training.restart_server()
        else:
            proxy = training.proxies[fault.client]
            # Once it runs again, if it was killed.
            training.wait(lambda: proxy.live)
            if not self._strike_client(fault, proxy):
                return
        self._hits[fault.kind] += 1
        who = "" if fault.kind is Kind.KILL_SERVER else f", client-{fault.client}"
        where = "round {}, {} accepted".format(*training.reached)
        self._say(f"{where}: {fault.kind.value}{who}")

    def result(self, seconds: float) -> Result:
        """Return the counts so far."""
        hits = self._hits
        others = (Kind.KILL_SERVER, Kind.KILL_CLIENT, Kind.PAUSE, Kind.STALL)
        return Result(
            seed=self._seed,
            seconds=round(seconds, 1),
            server_kills=hits[Kind.KILL_SERVER],
            client_kills=hits[Kind.KILL_CLIENT],
            pauses=hits[Kind.PAUSE],
            connection_faults=sum(n for kind, n in hits.items() if kind not in others),
        )

    def _strike_client(self, fault: Fault, proxy: Proxy) -> bool:
        """Return whether it hit; of a cut or a damaged byte, `_calm` tells."""
        training = self._training
        match fault.kind:
            case Kind.KILL_CLIENT:
                training.restart_client(fault.client)
            case Kind.PAUSE:
                client = training.clients[fault.client]
                client.send(signal.SIGSTOP)
                training.later(fault.seconds, lambda: client.send(signal.SIGCONT))
            case Kind.STALL:
                others = [c for i, c in enumerate(training.clients) if i != fault.client]
                for other in others:
                    other.send(signal.SIGSTOP)
                for other in others:
                    training.later(fault.seconds, partial(other.send, signal.SIGCONT))
            case Kind.CUT:
                proxy.cut_after(fault.way, fault.count)
            case Kind.CORRUPT:
                proxy.corrupt_after(fault.way, fault.count)
            case Kind.RESET:
                return proxy.reset() > 0
            case Kind.HALF_OPEN:
                # As behind a router that forgets its connections: silence, then a reset.
                training.later(fault.seconds, proxy.reset)
                return proxy.half_open() > 0
            case Kind.DELAY:
                proxy.delay = _DELAY_SECONDS
                training.later(fault.seconds, lambda: setattr(proxy, "delay", 0.0))
        return True

    def _calm(self) -> None:
        """End all faults; those that waited in vain for bytes did not hit."""
        self._training.wait(self._training.undone, ending=True)
        for proxy in self._training.proxies:
            for strike in proxy.calm():
                self._hits[Kind[strike.upper()]] -= 1

    def _say(self, line: str) -> None:
        _say(f"seed {self._seed} {time.monotonic() - self._began:6.1f} s  {line}")


def show(results: Iterator[Result], as_json: bool) -> bool:
    """Print each seed's result; return whether all invariants held everywhere."""
    table = Table("seed", "s", "server kills", "client kills", "pauses", "connection faults")
    for name in ("abandoned", "invariants", "digest"):
        table.add_column(name)
    held = True
    for result in results:
        held = held and result.held
        if as_json:
            print(json.dumps({**asdict(result), "held": result.held}), flush=True)
            continue
        counts = (result.server_kills, result.client_kills, result.pauses)
        table.add_row(
            *map(str, (result.seed, result.seconds, *counts, result.connection_faults)),
            str(result.abandoned),
            "held" if result.held else f"{len(result.violations)} broken",
            "equal" if result.digest_equal else "of its own" if result.held else "different",
        )
    if not as_json:
        Console().print(table)
    return held


def _folder(name: str, ends: ExitStack) -> Path:
    """Make a folder under runs/, which `ends` removes."""
    folder = Path("runs") / f"chaos-{os.getpid()}-{name}"
    folder.mkdir(parents=True)
    ends.callback(shutil.rmtree, folder)
    return folder


def _rows(path: Path) -> list[Line]:
    return Lines(path).all()


def _model(run: Path) -> bytes:
    path = layout.model(run)
    return path.read_bytes() if path.exists() else b""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
