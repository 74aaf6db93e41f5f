"""The columns of a committed round's row, each declared once.

The log, the metric files, the terminal, the dashboard, reports, Prometheus and MLflow take their
names, labels and units from here. A new column is a field of `Row`, and its value in
server/run/ledger.py.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Flag, auto
from typing import Any, Literal, NamedTuple

from common.training import Metrics
from server.storage.run_files import numbers, own_numbers

# How one value a client is summed up, by the end of the column's name: its percentile, and words.
SPREAD = {
    "min": (0, "lowest"),
    "p10": (10, "10th percentile"),
    "median": (50, "median"),
    "max": (100, "highest"),
}
_SPREAD_VIEWS = {f"client_{end}": f"clients, {words}" for end, (_, words) in SPREAD.items()}
# Of whom a measure is, as Prometheus labels it: in words.
VIEWS = {
    "global": "server's test set",
    "client_mean": "clients, mean",
    **_SPREAD_VIEWS,
    "train": "local training",
}
# Of a model: the unit, and which way is better.
MEASURES: Mapping[str, tuple[str, Literal["higher", "lower"]]] = {
    "accuracy": ("fraction of the examples", "higher"),
    "loss": ("mean over the examples", "lower"),
    "fine-tuned accuracy": ("fraction of the examples", "higher"),
    "fine-tuning gain": ("difference of accuracies", "higher"),
}


class Shown(Flag):
    """Where a column is shown beside the files, Prometheus and MLflow, which have all of them."""

    # The server's line of a committed round; tables of rounds on a terminal, and in a report.
    LOG = auto()
    TERMINAL = auto()
    REPORT = auto()


class Column(NamedTuple):
    """A column of numbers, as its readers show it.

    Args:
        name: in files, logs and messages.
        label: in words, by itself.
        short: as the head of a table of rounds.
        group: what stands beside it in one figure: a measure's name, or outcome, phase, bytes.
        view: of whom a measure is, one of VIEWS; empty if it is no measure of a model.
        unit: of the value.
        better: which way is better, if it matters.
        shown: where.
    """

    name: str
    label: str
    short: str
    group: str
    view: str
    unit: str
    better: Literal["higher", "lower"] | None
    shown: Shown

    @property
    def measure(self) -> str:
        """The measure's name in a metric's label."""
        return self.group.replace(" ", "_").replace("-", "_")

    @property
    def spread(self) -> bool:
        """Whether it sums up one value a client, each of which counts as one."""
        return self.view in _SPREAD_VIEWS

    def text(self, value: float) -> str:
        """Return a value as tables show it."""
        if self.unit == "s":
            return f"{value:,.1f}"
        return f"{value:.4f}" if self.view else f"{value:,.0f}"


_NOWHERE, _TABLES = Shown(0), Shown.TERMINAL | Shown.REPORT
_EVERYWHERE = Shown.LOG | _TABLES


def _measured(measure: str, view: str, short: str = "", shown: Shown = _NOWHERE) -> Any:  # noqa: ANN401
    label = f"{measure} ({VIEWS[view]})"
    return _field(label, short or label, measure, view, *MEASURES[measure], shown)


def _counted(
    label: str, unit: str, group: str = "", shown: Shown = _NOWHERE, short: str = ""
) -> Any:  # noqa: ANN401 - as `field`
    return _field(label, short or label, group, "", unit, None, shown)


def _field(*column: object) -> Any:  # noqa: ANN401 - as `field`
    return field(metadata={"column": column})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One committed round; seconds are seconds, accuracies and shares from 0 to 1."""

    round: int
    attempt: int
    # The committed model on the server's test set.
    global_accuracy: float | None = _measured("accuracy", "global", "accuracy", _EVERYWHERE)
    global_loss: float | None = _measured("loss", "global", "loss", _EVERYWHERE)
    # The committed model on the clients' validation sets: means weighted by their examples, and
    # how they spread over the clients, each of which counts as one.
    client_accuracy: float | None = _measured(
        "accuracy", "client_mean", "clients' accuracy", _EVERYWHERE
    )
    client_loss: float | None = _measured("loss", "client_mean")
    client_accuracy_min: float | None = _measured("accuracy", "client_min", "lowest", Shown.REPORT)
    client_accuracy_p10: float | None = _measured(
        "accuracy", "client_p10", "10th percentile", _EVERYWHERE
    )
    client_accuracy_median: float | None = _measured("accuracy", "client_median")
    client_accuracy_max: float | None = _measured("accuracy", "client_max")
    client_loss_min: float | None = _measured("loss", "client_min")
    client_loss_p10: float | None = _measured("loss", "client_p10")
    client_loss_median: float | None = _measured("loss", "client_median")
    client_loss_max: float | None = _measured("loss", "client_max")
    # The same after fine-tuning; the gain is the weighted mean of the accuracies' difference.
    fine_tuned_accuracy_min: float | None = _measured("fine-tuned accuracy", "client_min")
    fine_tuned_accuracy_p10: float | None = _measured("fine-tuned accuracy", "client_p10")
    fine_tuned_accuracy_median: float | None = _measured("fine-tuned accuracy", "client_median")
    fine_tuned_accuracy_max: float | None = _measured("fine-tuned accuracy", "client_max")
    fine_tuning_gain: float | None = _measured("fine-tuning gain", "client_mean", shown=Shown.LOG)
    # During local training, weighted by num_examples.
    train_loss: float | None = _measured("loss", "train", shown=Shown.LOG)
    # Clients there when the round began; those selected; the updates wanted of them and those
    # aggregated; clients without an update, and those whose update is invalid or was left out.
    num_clients: int = _counted("connected", "clients")
    cohort_size: int = _counted("selected", "clients")
    report_goal: int = _counted("wanted", "updates")
    accepted: int = _counted("accepted", "updates", "outcome", _TABLES, "updates")
    dropped: int = _counted("dropped", "clients", "outcome", Shown.REPORT)
    refused: int = _counted("refused", "updates", "outcome", Shown.REPORT)
    num_examples: int = _counted("examples", "examples", "", Shown.REPORT)
    bytes_down: int = _counted("server to clients", "B", "bytes")
    bytes_up: int = _counted("clients to server", "B", "bytes")
    # Of both, what was sent again after a broken transfer or a wrong digest.
    bytes_resent: int = _counted("of both, sent again", "B", "bytes")
    duration_seconds: float = _counted("duration", "s", "", _TABLES, "seconds")
    collect_seconds: float = _counted("collect", "s", "phase")
    aggregate_seconds: float = _counted("aggregate", "s", "phase")
    evaluate_seconds: float | None = _counted("evaluate", "s", "phase")
    # Of making all that durable. Unknown, while it is done, to the record that is made durable,
    # and so to a round after which the server was killed at once.
    commit_seconds: float | None = _counted("commit", "s", "phase")
    model_blake3: str
    best_round: int | None
    # What a task's own evaluation returns beside loss and accuracy.
    global_metrics: Metrics = field(default_factory=dict)
    client_metrics: Metrics = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """What a target is compared with: the server's accuracy, else the clients'."""
        return self.client_accuracy if self.global_accuracy is None else self.global_accuracy

    def own(self) -> Metrics:
        """Return a task's own metrics, as global_<name> and client_<name>."""
        return own_numbers(asdict(self))

    def numbers(self) -> Metrics:
        """Return what is a number and there, by name; of a task's own, as global_<name>."""
        return numbers(asdict(self))


# By name; of these, what is measured of a model, by measure and view.
COLUMNS: Mapping[str, Column] = {
    one.name: Column(one.name, *one.metadata["column"])
    for one in fields(Row)
    if "column" in one.metadata
}
MEASURED: Mapping[tuple[str, str], Column] = {
    (column.group, column.view): column for column in COLUMNS.values() if column.view
}


def columns(*, group: str | None = None, shown: Shown | None = None) -> list[Column]:
    """Return the columns of a group, or those that are shown somewhere, in their order."""
    return [
        column
        for column in COLUMNS.values()
        if group in (None, column.group) and (shown is None or shown in column.shown)
    ]
