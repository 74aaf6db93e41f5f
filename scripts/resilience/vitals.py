"""A server's memory, descriptors and threads through /proc, and whether they stay level."""

from __future__ import annotations

import time
from typing import NamedTuple

from rich.table import Table

from scripts.testbed.processes import Process

_GROWTH = 1.1
# The pools of asyncio and gRPC grow while they are busy.
_POOLED_THREADS = 4
_QUIET_SECONDS = 1.5
_LONGEST_SECONDS = 20.0


class Vitals(NamedTuple):
    """What a process holds; memory in bytes."""

    anonymous: int
    resident: int
    descriptors: int
    threads: int


def vitals(process: Process) -> Vitals:
    """Return what a process holds now."""
    return Vitals(
        process.memory("RssAnon"),
        process.memory("VmRSS"),
        process.count("fd"),
        process.count("task"),
    )


def at_rest(process: Process) -> Vitals:
    """Return what a process holds once its descriptors are the same for a while."""
    until = time.monotonic() + _LONGEST_SECONDS
    last, since = vitals(process), time.monotonic()
    while time.monotonic() < min(since + _QUIET_SECONDS, until):
        time.sleep(0.05)
        now = vitals(process)
        if now.descriptors != last.descriptors:
            since = time.monotonic()
        last = now
    return last


def table_of(before: Vitals, after: Vitals) -> Table:
    """Return both side by side, for people."""
    table = Table("", "after the warm-up", "at the end")
    for name, *values in zip(Vitals._fields, before, after, strict=True):
        is_memory = name in ("anonymous", "resident")
        table.add_row(name, *(f"{v / 1e6:.1f} MB" if is_memory else str(v) for v in values))
    return table


def growth(before: Vitals, after: Vitals) -> list[str]:
    """Return a line for each thing that grew: memory by more than a tenth, others at all."""
    limits = Vitals(
        anonymous=int(before.anonymous * _GROWTH),
        resident=int(before.resident * _GROWTH),
        descriptors=before.descriptors,
        threads=before.threads + _POOLED_THREADS,
    )
    return [
        f"{name} grew from {old} to {new}"
        for name, old, new, limit in zip(Vitals._fields, before, after, limits, strict=True)
        if new > limit
    ]
