"""What happened in one attempt of a round, and the rows that come of it.

A ledger: others write down what they saw and when, this file adds up. Knows no clock.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common.bounds import MAX_METRICS
from common.tensors import Digest
from common.training import Metrics
from server.engine.early_stopping import Progress, advance, score_of
from server.engine.engine import RunView
from server.run.uploads import StoredUpdate
from server.storage.columns import Row, Shown, columns
from server.storage.metrics import most_reported, spread, weighted_means

# Of a client's metrics, those with a column of clients.jsonl.
_IN_COLUMNS = frozenset(
    f"{when}{name}" for when in ("", "fine_tuned_") for name in ("accuracy", "loss")
)


@dataclass(frozen=True, kw_only=True)
class RoundSummary:
    """One attempt as operators see it; `phase` is the engine's, or how the attempt ended."""

    number: int
    attempt: int
    phase: str
    cohort_size: int
    report_goal: int
    accepted: int
    refused: int
    dropped: int
    metrics: Metrics = field(default_factory=dict)
    # Of these, those that only this task has.
    own: Metrics = field(default_factory=dict)


@dataclass
class Traffic:
    """Bytes of all attempts since the process began."""

    down: int = 0
    up: int = 0
    resent: int = 0


@dataclass
class RoundLedger:
    """One attempt; times are seconds of one monotonic clock, bytes and seconds by client id."""

    began: float
    num_clients: int
    traffic: Traffic = field(default_factory=Traffic)
    # Of all clients that were there at some time.
    partitions: dict[str, int] = field(default_factory=dict)
    # When a client's session ended.
    left: dict[str, float] = field(default_factory=dict)
    collected: float | None = None
    aggregated: float | None = None
    # None: nothing was evaluated.
    evaluating_since: float | None = None
    refused: set[str] = field(default_factory=set)
    # Whose training came to NaN or infinity, or went too far.
    diverged: set[str] = field(default_factory=set)
    bytes_down: dict[str, int] = field(default_factory=dict)
    bytes_up: dict[str, int] = field(default_factory=dict)
    bytes_resent: int = 0
    report_seconds: dict[str, float] = field(default_factory=dict)
    # num_examples and means of each client's evaluation of the candidate.
    evaluations: dict[str, tuple[int, Metrics]] = field(default_factory=dict)
    global_metrics: Metrics = field(default_factory=dict)
    loss_is_finite: bool = True
    confusion: list[list[int]] | None = None
    # Of each update in the step; None where the strategy knows no such thing.
    shares: dict[str, float | None] = field(default_factory=dict)

    def count_down(self, client_id: str, size: int) -> None:
        """Add bytes that were sent to a client."""
        self.bytes_down[client_id] = self.bytes_down.get(client_id, 0) + size
        self.traffic.down += size

    def count_up(self, client_id: str, size: int, resent: int = 0) -> None:
        """Add bytes that came from a client, of which so many had come before."""
        self.count_resent(resent)
        self.bytes_up[client_id] = self.bytes_up.get(client_id, 0) + size
        self.traffic.up += size

    def count_resent(self, size: int) -> None:
        """Add bytes that were on their way when a transfer broke."""
        self.bytes_resent += size
        self.traffic.resent += size

    def dropped(self, view: RunView) -> int:
        """Return how many of the cohort will bring no update, the refused ones aside."""
        return len((view.lost | view.failed) - self.refused)

    def summary(self, view: RunView, phase: str) -> RoundSummary:
        """Return the attempt as operators see it in `phase`."""
        return RoundSummary(
            number=view.round,
            attempt=view.attempt,
            phase=phase,
            cohort_size=len(view.cohort),
            report_goal=view.goal,
            accepted=len(view.accepted - self.refused),
            refused=len(self.refused),
            dropped=self.dropped(view),
        )

    def row(
        self,
        view: RunView,
        updates: Mapping[str, StoredUpdate],
        model: Digest,
        progress: Progress,
        now: float,
    ) -> tuple[Row, Progress]:
        """Return the committed round's row, and the progress that it makes.

        Args:
            view: of the run when the round is committed.
            updates: of all clients whose update is durable.
            model: the candidate's digest.
            progress: before this round.
            now: the clock.
        """
        if self.collected is None or self.aggregated is None:
            raise ValueError("a round is committed after its updates were aggregated")
        own = dict(self.global_metrics)
        mean = weighted_means(self.evaluations[c] for c in sorted(self.evaluations))
        kept = most_reported([metrics for _, metrics in self.evaluations.values()], MAX_METRICS)
        mean = {name: value for name, value in mean.items() if name in kept}
        accuracy, loss = own.pop("accuracy", None), own.pop("loss", None)
        client_accuracy, client_loss = mean.pop("accuracy", None), mean.pop("loss", None)
        score = score_of(accuracy, loss)
        if score is None:
            score = score_of(client_accuracy, client_loss)
        judged = client_loss if loss is None else loss
        if not self.loss_is_finite:
            judged = math.nan
        progress = advance(progress, view.round, score, judged)
        counted = [updates[client] for client in sorted(view.accepted & updates.keys())]
        trained = weighted_means((update.num_examples, update.metrics) for update in counted)
        row = Row(
            round=view.round,
            attempt=view.attempt,
            global_accuracy=accuracy,
            global_loss=loss,
            client_accuracy=client_accuracy,
            client_loss=client_loss,
            **spread("client_accuracy", self._evaluated("accuracy")),
            **spread("client_loss", self._evaluated("loss")),
            **spread("fine_tuned_accuracy", self._evaluated("fine_tuned_accuracy")),
            fine_tuning_gain=self._fine_tuning_gain(),
            train_loss=trained.get("loss"),
            num_clients=self.num_clients,
            cohort_size=len(view.cohort),
            report_goal=view.goal,
            accepted=len(view.accepted),
            dropped=len(set(view.cohort) - view.accepted - self.refused),
            refused=len(self.refused),
            num_examples=sum(update.num_examples for update in counted),
            bytes_down=sum(self.bytes_down.values()),
            bytes_up=sum(self.bytes_up.values()),
            bytes_resent=self.bytes_resent,
            duration_seconds=round(now - self.began, 4),
            collect_seconds=round(self.collected - self.began, 4),
            aggregate_seconds=round(self.aggregated - self.collected, 4),
            evaluate_seconds=(
                None if self.evaluating_since is None else round(now - self.evaluating_since, 4)
            ),
            commit_seconds=None,
            model_blake3=model.blake3,
            best_round=progress.best_round,
            global_metrics=own,
            client_metrics=mean,
        )
        return row, progress

    def _evaluated(self, name: str) -> list[float]:
        """Return a metric of each client that evaluated on examples of its own."""
        found = self.evaluations.values()
        return [metrics[name] for count, metrics in found if count > 0 and name in metrics]

    def _fine_tuning_gain(self) -> float | None:
        """Return the mean gain in accuracy of the clients that evaluated twice."""
        before, after = "accuracy", "fine_tuned_accuracy"
        gains = (
            (count, {"gain": metrics[after] - metrics[before]})
            for _, (count, metrics) in sorted(self.evaluations.items())
            if {before, after} <= metrics.keys()
        )
        return weighted_means(gains).get("gain")

    def client_rows(
        self, view: RunView, updates: Mapping[str, StoredUpdate]
    ) -> list[dict[str, Any]]:
        """Return a row for each client of the cohort and each that evaluated; absent is None."""
        rows = []
        for client in sorted({*view.cohort, *self.evaluations}):
            update = updates.get(client)
            examples, evaluation = self.evaluations.get(client, (None, {}))
            outcome = "accepted" if update else "dropped"
            if client in self.refused:
                outcome = "refused"
            if client not in view.cohort:
                outcome = "not_selected"
            rows.append(
                {
                    "round": view.round,
                    "client_id": client,
                    "partition": self.partitions.get(client),
                    "outcome": outcome,
                    "num_examples": update and update.num_examples,
                    "share": self.shares.get(client),
                    "update_norm": update and update.norm,
                    "train_loss": update and update.metrics.get("loss"),
                    "validation_examples": examples,
                    "validation_loss": evaluation.get("loss"),
                    "validation_accuracy": evaluation.get("accuracy"),
                    "fine_tuned_loss": evaluation.get("fine_tuned_loss"),
                    "fine_tuned_accuracy": evaluation.get("fine_tuned_accuracy"),
                    "seconds": self.report_seconds.get(client),
                    "bytes_down": self.bytes_down.get(client),
                    "bytes_up": self.bytes_up.get(client),
                    "train_metrics": _own(update.metrics) if update else {},
                    "validation_metrics": _own(evaluation),
                }
            )
        return rows


def _own(metrics: Mapping[str, float]) -> Metrics:
    """Return the metrics that have no columns."""
    return {name: value for name, value in metrics.items() if name not in _IN_COLUMNS}


def committed(row: Row) -> RoundSummary:
    """Return a committed round as operators see it."""
    return RoundSummary(
        number=row.round,
        attempt=row.attempt,
        phase="committed",
        cohort_size=row.cohort_size,
        report_goal=row.report_goal,
        accepted=row.accepted,
        refused=row.refused,
        dropped=row.dropped,
        metrics=row.numbers(),
        own=row.own(),
    )


def headline(row: Row) -> dict[str, int | float]:
    """Return what a person wants to see of a row in one line."""
    return {
        **{
            column.name: round(value, 4)
            for column in columns(shown=Shown.LOG)
            if (value := getattr(row, column.name)) is not None
        },
        **{name: round(value, 4) for name, value in row.own().items()},
        "updates": row.accepted,
        "seconds": round(row.duration_seconds, 2),
    }
