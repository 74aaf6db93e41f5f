"""What a process uses of its machine. Knows nothing about runs."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

import psutil

# A server that is away for a day costs no more than 10,000 of them.
_KEPT = 10_000
_SECONDS = 10.0


class Sample(NamedTuple):
    """What a process uses at a time, in seconds since 1970."""

    at: float
    values: dict[str, float]


class Usage:
    """Samples of a process, every ten seconds, the last 10,000 of them until they are taken.

    Args:
        pid: of the process; None, or that of one that is gone: there are no samples.
    """

    def __init__(self, pid: int | None) -> None:
        self._process: psutil.Process | None = None
        self._next = 0.0
        self.samples: deque[Sample] = deque(maxlen=_KEPT)
        try:
            if pid is not None:
                self._process = psutil.Process(pid)
                # Of CPU time, it tells what was used since it was asked before.
                self._process.cpu_percent()
        except psutil.Error:
            self._process = None

    def sample(self) -> None:
        """Take a sample, if it is time."""
        if self._process is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _SECONDS
        try:
            with self._process.oneshot():
                values = {
                    "server_cpu_utilization_percentage": self._process.cpu_percent(),
                    "server_memory_usage_megabytes": self._process.memory_info().rss / 1e6,
                }
        except psutil.Error:
            return
        self.samples.append(Sample(time.time(), values))
