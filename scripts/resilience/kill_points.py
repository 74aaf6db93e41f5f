"""Servers and clients that are killed at each of their writes, and started again.

A life is ended by SIGKILL before a system call that changes a folder, or in the middle of a write,
and the next life must end as if it had not been. That next one may be killed, too.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from common.errors import RunFailed
from scripts.resilience import client_lives, server_lives
from scripts.resilience.kills import KILLED, Life, Point, folder_in_memory, kind_of, points
from server.storage import layout

# Of each first point: how many points of the second life's recovery, and of the rest of it.
_IN_RECOVERY, _LATER = 3, 2
_ONE, _TWO = "one kill", "two kills"
_RECOVERY, _DELETED = "killed again in recovery", f"{layout.COHORT} deleted"
_CLIENT, _CLIENT_TWICE = "client, one kill", "client, two kills"


class _Try(NamedTuple):
    """What was tried: how often a life was ended, at what kind of point, and what was wrong."""

    chain: str
    kind: str
    problem: str | None


def run(every: int, as_json: bool) -> None:
    """End lives at every so many-th point, check the next ones, and print what came of it.

    Raises:
        RunFailed: a life ended otherwise than if none had been killed.
    """
    # Before gRPC begins anything, of which there is nothing in this process.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    torch.set_num_threads(1)
    tally, failures = Counter[tuple[str, str]](), list[str]()
    for kind in (_server, _client):
        for tried in kind(every):
            tally[tried.chain, tried.kind] += 1
            if tried.problem:
                failures.append(f"{tried.chain}, {tried.problem}")
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{tally.total()} points, {len(failures)} failed ")
    _show(tally, len(failures), as_json)
    if failures:
        more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
        raise RunFailed("; ".join(failures[:5]) + more)


def _show(tally: Counter[tuple[str, str]], failures: int, as_json: bool) -> None:
    chains, kinds = Counter[str](), Counter[str]()
    for (chain, kind), times in tally.items():
        chains[chain] += times
        kinds[kind] += times
    if as_json:
        found = {"points": tally.total(), "failures": failures, "chains": chains, "kinds": kinds}
        print(json.dumps(found))
        return
    table = Table("", "points")
    for name, times in chains.items():
        table.add_row(name, str(times))
    table.add_section()
    for name, times in sorted(kinds.items()):
        table.add_row(name, str(times))
    console = Console()
    console.print(table)
    console.print(f"{tally.total()} points; {failures} times not as if undisturbed")


# ------------------------------------------------------------------------------- servers


def _server(every: int) -> Iterator[_Try]:
    """Kill a server in which an attempt of each round is abandoned."""
    with folder_in_memory() as place:
        folder = place / "run"
        first = server_lives.serve(folder, None, server_lives.ROUNDS)
        if first.status:
            raise RunFailed(f"the undisturbed run ended with {first.end}")
        expected = server_lives.result(folder)
    for number, point in enumerate(list(points(first.steps))[::every]):
        with folder_in_memory() as place:
            yield from _server_killed_at(point, number, place, expected)


def _server_killed_at(
    point: Point, number: int, place: Path, expected: tuple[Any, ...]
) -> Iterator[_Try]:
    """Kill a server at a point, and the next one at a few of its own."""
    left, folder = place / "left" / "run", place / "run"
    first = server_lives.serve(left, point, server_lives.ROUNDS)
    if first.status != KILLED:
        yield _Try(_ONE, "none", f"{point} was not reached; the life ended with {first.end}")
        return
    where = f"{first.steps[-1]} ({point})"
    _copy(left, folder)
    second = server_lives.serve(folder, None)
    problem = _server_problem(folder, expected, [first, second])
    yield _Try(_ONE, kind_of(first.steps[-1], point), problem and f"{where}: {problem}")

    _copy(left, folder)
    open_rounds = [
        cohort
        for cohort in folder.glob(f"{layout.ROUNDS}/*/{layout.COHORT}")
        if not cohort.with_name(layout.RECORD).exists()
    ]
    if open_rounds:
        for cohort in open_rounds:
            cohort.unlink()
        problem = _server_problem(folder, expected, [first, server_lives.serve(folder, None)])
        yield _Try(_DELETED, kind_of(first.steps[-1], point), problem and f"{where}: {problem}")

    in_recovery = server_lives.recovered(second)
    again = list(points(second.steps))
    draw = random.Random(number)
    for chain, most, found in (
        (_RECOVERY, _IN_RECOVERY, [p for p in again if p.step < in_recovery]),
        (_TWO, _LATER, [p for p in again if p.step >= in_recovery]),
    ):
        for other in draw.sample(found, min(most, len(found))):
            _copy(left, folder)
            # A second life of which an attempt is abandoned takes more steps, not fewer.
            missed = server_lives.ROUNDS if number % 2 else frozenset[int]()
            lives = [first, server_lives.serve(folder, other, missed)]
            lives.append(server_lives.serve(folder, None))
            problem = _server_problem(folder, expected, lives)
            step = lives[1].steps[-1]
            yield _Try(
                chain, kind_of(step, other), problem and f"{where}, {step} ({other}): {problem}"
            )


def _server_problem(folder: Path, expected: tuple[Any, ...], lives: Sequence[Life]) -> str | None:
    """Return what is wrong after some lives of which the last was not killed."""
    problem = _ended_otherwise(lives)
    if problem:
        return problem
    found = server_lives.result(folder)
    if found != expected:
        unlike = [(was, now) for was, now in zip(expected, found, strict=True) if was != now]
        return f"the result differs: {unlike}"[:500]
    rows = [json.loads(line) for line in (folder / layout.CLIENTS).read_text().splitlines()]
    counted = Counter((row["round"], row["client_id"]) for row in rows)
    acknowledged = set[tuple[int, str]]().union(*map(server_lives.acknowledged, lives))
    if not acknowledged <= set(counted) or max(counted.values()) > 1:
        return f"acknowledged {sorted(acknowledged)}, counted {dict(counted)}"
    return None


def _ended_otherwise(lives: Sequence[Life]) -> str | None:
    *killed, last = lives
    if any(life.status != KILLED for life in killed):
        return f"a point was not reached; a life ended with {killed[-1].end}"
    if last.status:
        return f"the last life ended with {last.end}"
    return None


def _copy(source: Path, target: Path) -> None:
    """Make `target` what `source` is, hard links included."""
    shutil.rmtree(target, ignore_errors=True)
    known: dict[int, str] = {}

    def copy(old: str, new: str) -> None:
        inode = Path(old).stat().st_ino
        if inode in known:
            os.link(known[inode], new)
        else:
            known[inode] = new
            shutil.copy2(old, new)

    with suppress(FileNotFoundError):  # It died before there was one.
        shutil.copytree(source, target, copy_function=copy)


# ------------------------------------------------------------------------------- clients


def _client(every: int) -> Iterator[_Try]:
    """Kill a client that keeps its own layers and SCAFFOLD's control variate."""
    undisturbed, expected = client_lives.train([])
    if undisturbed[-1].status:
        raise RunFailed(f"the undisturbed client ended with {undisturbed[-1].end}")
    for number, point in enumerate(list(points(undisturbed[-1].steps))[::every]):
        lives, result = client_lives.train([point])
        yield _client_try(_CLIENT, [point], lives, result == expected)
        again = list(points(lives[-1].steps))
        if again:
            other = random.Random(number).choice(again)
            lives, result = client_lives.train([point, other])
            yield _client_try(_CLIENT_TWICE, [point, other], lives, result == expected)


def _client_try(chain: str, kills: Sequence[Point], lives: Sequence[Life], same: bool) -> _Try:
    problem = _ended_otherwise(lives)
    if not problem and not same:
        problem = "the models or what the client keeps differ"
    steps = [life.steps[-1] for life in lives[:-1]]
    where = ", ".join(f"{step} ({point})" for step, point in zip(steps, kills, strict=True))
    return _Try(chain, kind_of(steps[-1], kills[-1]), problem and f"{where}: {problem}")
