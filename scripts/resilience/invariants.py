"""What must hold after a training, whatever was done to it; each returns what does not.

Pure functions over what was read of the run directory, the logs and /proc.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from server.storage import layout

Rows = Sequence[Mapping[str, Any]]

# Beside an earlier quiet round of the same process: a factor, and how many more. A thread that
# starts in between keeps the buffers of three updates, 12 MB of some 330, and no more with each
# round.
MEMORY_TOLERANCE = 1.20
# A connection of each client may have been cut silently, which keepalive finds within 30 s.
FILES_TOLERANCE = 3
# asyncio's threads come as they are needed, up to four more than there are processors.
THREADS_TOLERANCE = 4

_PLAIN = (
    *(layout.CONFIG, layout.LOG, layout.METRICS, layout.TABLE, layout.CLIENTS),
    *(layout.EVALUATIONS, layout.LOCK, layout.OPERATOR_TOKEN),
)
_FILES = re.compile(
    "|".join(re.escape(name) for name in _PLAIN) + r"|rounds/(?P<round>\d{5})/[a-z_]+\.safetensors"
    r"|rounds/(?P<round_too>\d{5})/(record|cohort)\.json"
    r"|models/(global|best)\.(safetensors|pth|json)"
)
_BUGS = ("bug in a call", "Traceback", "never retrieved")
# What ends a client's wait for the answer to its push.
_INTERRUPTIONS = {
    "client started",
    "session lost; joining again",
    "work is not wanted any more",
}


class Level(NamedTuple):
    """What a process uses: anonymous bytes of memory, open files, threads."""

    memory: int
    files: int
    threads: int


def rounds_grow_by_one(metrics: Rows, log: Rows, rounds: int) -> list[str]:
    """Check that each round was committed once, in order."""
    found = [row["round"] for row in metrics]
    problems = []
    if found != list(range(1, rounds + 1)):
        problems.append(f"{layout.METRICS} has the rounds {found}")
    commits = Counter(event["round"] for event in log if event["event"] == "round committed")
    problems += [f"round {r} was committed {n} times" for r, n in commits.items() if n > 1]
    return problems


def counted_once(clients: Rows, names: Sequence[str], rounds: int, quorum: int) -> list[str]:
    """Check that each client has one row a round, and that a quorum of them is accepted."""
    found = Counter((row["round"], row["client_id"]) for row in clients)
    wanted = Counter((number, name) for number in range(1, rounds + 1) for name in names)
    accepted = Counter(row["round"] for row in clients if row["outcome"] == "accepted")
    return [
        *(f"{layout.CLIENTS} lacks {row}" for row in wanted - found),
        *(f"{layout.CLIENTS} has {row} too much" for row in found - wanted),
        *(
            f"round {number} was committed with {accepted[number]} updates"
            for number in range(1, rounds + 1)
            if accepted[number] < quorum
        ),
    ]


def acknowledged_kept(clients: Rows, log: Rows, client_logs: Mapping[str, Rows]) -> list[str]:
    """Check the clients' acknowledgements against what the server counted.

    An acknowledged update is an accepted row, or its attempt was abandoned; and only a client
    that was interrupted may lack an acknowledgement.
    """
    accepted = {(r["round"], r["client_id"]) for r in clients if r["outcome"] == "accepted"}
    abandoned = {(e["round"], e["attempt"]) for e in log if e["event"] == "round abandoned"}
    dropped = Counter(
        (e["round"], e["client"])
        for e in log
        if e["event"] == "update accepted" and (e["round"], e["attempt"]) in abandoned
    )
    problems = []
    for name, events in client_logs.items():
        acknowledged = Counter(
            e["round"] for e in events if e["event"] == "pushed" and e["outcome"] == "ACCEPTED"
        )
        for number, count in acknowledged.items():
            left = count - dropped[number, name]
            if left > 0 and (number, name) not in accepted:
                problems.append(f"{name}'s acknowledged update of round {number} is lost")
            if left > 1:
                problems.append(f"{name} had to push {count} times in round {number}")
        interruptions = sum(event["event"] in _INTERRUPTIONS for event in events) - 1
        missing = sum(c == name and r not in acknowledged for r, c in accepted)
        if missing > interruptions:
            problems.append(
                f"{name} lacks {missing} acknowledgements, interrupted {interruptions} times"
            )
    return problems


def same_models(metrics: Rows, reference: Rows) -> list[str]:
    """Check each round's model against that of the undisturbed run."""
    return [
        f"round {ours['round']} ended with another model"
        for ours, theirs in zip(metrics, reference, strict=False)
        if ours["model_blake3"] != theirs["model_blake3"]
    ]


def recomputed_models(metrics: Rows, digests: Sequence[str]) -> list[str]:
    """Check each round's model against what was recomputed of the updates that it counted."""
    return [
        f"round {row['round']}: the model is not that of the updates that were counted"
        for row, digest in zip(metrics, digests, strict=True)
        if row["model_blake3"] != digest
    ]


def server_settled(before: Level | None, after: Level | None) -> list[str]:
    """Check that a process is back at an earlier level."""
    if before is None or after is None:
        return ["the last server was not seen in both quiet rounds"]
    problems = []
    if after.memory > before.memory * MEMORY_TOLERANCE:
        problems.append(f"the server's memory grew from {before.memory} to {after.memory} bytes")
    if after.files > before.files + FILES_TOLERANCE:
        problems.append(f"the server's open files grew from {before.files} to {after.files}")
    if after.threads > before.threads + THREADS_TOLERANCE:
        problems.append(f"the server's threads grew from {before.threads} to {after.threads}")
    return problems


def no_orphans(paths: Iterable[str], rounds: int, keep_rounds: int) -> list[str]:
    """Check that a run directory holds what an ended run leaves, and the last rounds only."""
    problems = []
    for path in sorted(paths):
        match = _FILES.fullmatch(path)
        number = match and (match["round"] or match["round_too"])
        if match is None or (number and int(number) <= rounds - keep_rounds):
            problems.append(f"{path} was left behind")
    return problems


def ended_well(statuses: Mapping[str, int | None]) -> list[str]:
    """Check that all processes ended by themselves, with status 0."""
    return [
        f"{name} {'still ran' if status is None else f'ended with {status}'}"
        for name, status in statuses.items()
        if status != 0
    ]


def enough(count: int, least: int, what: str) -> list[str]:
    """Check that the faults that hit were as many as promised."""
    return [] if count >= least else [f"only {count} {what}, not {least}"]


def no_bugs(log: Sequence[str]) -> list[str]:
    """Check that no line of a server's log tells of a bug."""
    bad = [line for line in log if any(sign in line for sign in _BUGS)]
    return [f"the log tells of bugs in {len(bad)} lines, first {bad[0]:.2500}"] if bad else []
