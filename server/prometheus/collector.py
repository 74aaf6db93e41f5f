"""What Prometheus is told of a run: a collector of metrics, read from the run's status.

Counters and histograms begin with the process, as Prometheus expects; gauges say how the run is
now, a resumed one, too. A scrape runs in a thread of its own: it reads values that the event loop
replaces or appends to, and never waits for it. Knows nothing about HTTP or gRPC.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Enum,
    Gauge,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from server.engine.events import Phase
from server.run.ledger import RoundSummary
from server.run.sessions import Sessions
from server.run.status import RunStatus
from server.storage.columns import MEASURED, columns

# From a hundredth of a second, for small models, to an hour.
_SECONDS = (
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600),
)
# The gauges of a model's measures; others share one.
_GAUGES = {"accuracy": "model_accuracy_ratio", "loss": "model_loss"}
_PHASES = {column.name: column.label for column in columns(group="phase")}
_OUTCOMES = [column.name for column in columns(group="outcome")]


def registry_of(status: RunStatus, sessions: Sessions, run: Mapping[str, str]) -> CollectorRegistry:
    """Return the registry of a server process: its run, and the process itself.

    Args:
        status: the run's.
        sessions: the clients that are connected.
        run: what the run is, as labels of folkmoot_run_info.
    """
    registry = CollectorRegistry()
    registry.register(RunCollector(status, sessions, run))
    ProcessCollector(registry=registry)
    return registry


class RunCollector(Collector):
    """The run's metrics, brought up to date whenever they are collected."""

    def __init__(self, status: RunStatus, sessions: Sessions, run: Mapping[str, str]) -> None:
        self._status = status
        self._clients = sessions
        self._lock = threading.Lock()
        self._own = CollectorRegistry()
        info = Info("folkmoot_run", "What this server trains.", registry=self._own)
        info.info({**run})
        self._round = self._gauge("round", "Round in progress, or the last; from 1.")
        self._attempt = self._gauge("round_attempt", "Attempt at that round; from 1.")
        self._target = self._gauge("target_rounds", "Round that the run ends with, if not earlier.")
        self._phase = Enum(
            "folkmoot_round_phase",
            "Where that round stands.",
            states=[phase.value for phase in Phase],
            registry=self._own,
        )
        self._cohort = self._gauge("round_cohort_clients", "Clients selected for that round.")
        self._wanted = self._gauge("round_wanted_updates", "Updates wanted of them.")
        self._accepted = self._gauge("round_accepted_updates", "Updates accepted so far.")
        self._sessions = self._gauge("sessions", "Clients that are connected.")
        self._measures = {
            measure: self._gauge(
                name, f"{measure.capitalize()} of the last model that was evaluated.", "view"
            )
            for measure, name in _GAUGES.items()
        }
        self._metric = self._gauge(
            "model_metric",
            "Other metrics of the last model that was evaluated, and a task's own.",
            "view",
            "metric",
        )
        self._rounds = self._counter("rounds", "Attempts at rounds that ended.", "outcome")
        self._updates = self._counter(
            "updates",
            "Clients selected in attempts that ended, by what became of their update.",
            "outcome",
        )
        self._duration = self._histogram("round_duration_seconds", "Of committed rounds.")
        self._phases = self._histogram("phase_duration_seconds", "Of committed rounds.", "phase")
        for outcome in ("committed", "abandoned"):
            self._rounds.labels(outcome)
        for outcome in _OUTCOMES:
            self._updates.labels(outcome)
        for phase in _PHASES.values():
            self._phases.labels(phase)
        for summary in status.history:
            self._show(summary)
        self._seen = len(status.history)

    def collect(self) -> Iterable[Metric]:
        """Return all metrics as they are now."""
        with self._lock:
            while self._seen < len(self._status.history):
                summary = self._status.history[self._seen]
                self._seen += 1
                self._count(summary)
                self._show(summary)
            self._look()
            return [*self._own.collect(), *self._traffic()]

    def _count(self, ended: RoundSummary) -> None:
        """Count an attempt at a round that has ended."""
        self._rounds.labels(ended.phase).inc()
        for outcome in _OUTCOMES:
            self._updates.labels(outcome).inc(getattr(ended, outcome))
        numbers = ended.metrics
        if "duration_seconds" in numbers:
            self._duration.observe(numbers["duration_seconds"])
        for name, phase in _PHASES.items():
            if name in numbers:
                self._phases.labels(phase).observe(numbers[name])

    def _show(self, ended: RoundSummary) -> None:
        """Show how good a round's model is, as far as that was found out."""
        if ended.own:
            # Clients may name theirs otherwise each time.
            self._metric.clear()
        for column in MEASURED.values():
            if (value := ended.metrics.get(column.name)) is not None:
                gauge = self._measures.get(column.group)
                labels = (column.view,) if gauge else (column.view, column.measure)
                (gauge or self._metric).labels(*labels).set(value)
        for name, value in ended.own.items():
            side, _, metric = name.partition("_")
            self._metric.labels({"client": "client_mean"}.get(side, side), metric).set(value)

    def _look(self) -> None:
        """Show how the run is now."""
        current = self._status.current_round()
        self._round.set(current.number)
        self._attempt.set(current.attempt)
        self._target.set(self._status.view.rounds)
        self._phase.state(self._status.view.phase.value)
        self._cohort.set(current.cohort_size)
        self._wanted.set(current.report_goal)
        self._accepted.set(current.accepted)
        self._sessions.set(len(self._clients))

    def _traffic(self) -> Iterator[Metric]:
        traffic = self._status.ledger.traffic
        for name, text, value in (
            ("sent", "Of models, to clients.", traffic.down),
            ("received", "Of updates, from clients.", traffic.up),
            ("resent", "Of both, what went again after a broken transfer.", traffic.resent),
        ):
            yield CounterMetricFamily(f"folkmoot_{name}_bytes", text, value=value)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"folkmoot_{name}", text, labels, registry=self._own)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"folkmoot_{name}", text, labels, registry=self._own)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"folkmoot_{name}", text, labels, buckets=_SECONDS, registry=self._own)
