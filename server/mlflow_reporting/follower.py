"""Follows a run until it ends and MLflow has all of it, or does not answer any more.

Knows no MLflow call; whatever fails is tried again from what MLflow then has.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mlflow.exceptions import MlflowException

from common.logs import get_logger
from server.mlflow_reporting.best_model import BestModel
from server.mlflow_reporting.history import History
from server.mlflow_reporting.runs import Runs
from server.mlflow_reporting.system import Usage

log = get_logger()

_POLL_SECONDS = 1.0
_LONGEST_WAIT = 30.0
# After the run's end, for an answer.
_PATIENCE = 30.0


class Follower:
    """Tells MLflow of a run.

    Args:
        history: of the run.
        connect: returns what MLflow has of it.
        best: its best model.
        registered_name: of that model; None: it is not registered.
    """

    def __init__(
        self,
        history: History,
        connect: Callable[[], Runs],
        best: BestModel,
        registered_name: str | None,
    ) -> None:
        self._history = history
        self._connect = connect
        self._best = best
        self._registered_name = registered_name
        self._usage = Usage(history.pid)
        self._runs: Runs | None = None
        # When MLflow took something last; after the run's end, when that was, if it was before.
        self._answered: float | None = None

    def follow(self) -> bool:
        """Return once the run has ended: whether MLflow has all of it."""
        failures = 0
        while True:
            try:
                if self._tell():
                    return True
                if failures:
                    log.info("MLflow answers again", failures=failures)
                failures = 0
            except (MlflowException, OSError) as error:
                self._runs = None
                failures += 1
                if failures == 1:
                    reason = " ".join(str(error).split())
                    log.warning("MLflow does not answer; it is tried again", reason=reason)
                if self._patience_is_over():
                    return False
            self._wait(min(2.0**failures, _LONGEST_WAIT) if failures else _POLL_SECONDS)

    def _patience_is_over(self) -> bool:
        if self._history.status == "RUNNING":
            self._answered = None
            return False
        now = time.monotonic()
        self._answered = self._answered or now
        return now > self._answered + _PATIENCE

    def _wait(self, seconds: float) -> None:
        """Wait, but not longer than the run goes on."""
        until = time.monotonic() + seconds
        while True:
            time.sleep(_POLL_SECONDS)
            self._usage.sample()
            if time.monotonic() >= until or self._history.status != "RUNNING":
                return

    def _tell(self) -> bool:
        """Tell what is new; return whether that was the last of it."""
        # First, so that what comes between is told the next time.
        status = self._history.status
        if self._runs is None or status != "RUNNING":
            # In the end, what MLflow has is looked at once more, rather than believed.
            self._runs = self._connect()
        runs = self._runs
        for told in self._history.rounds(runs.complete):
            runs.add_round(told)
            self._answered = time.monotonic()
        samples = list(self._usage.samples)
        if samples:
            runs.add_system(samples)
            self._usage.samples.clear()
        if status == "RUNNING":
            return False
        if status == "FINISHED":
            self._best.log(runs, self._registered_name)
        runs.finish(status, self._history.ended)
        return True
