"""The server's options: one frozen dataclass for each group of `python -m server --help`.

Only names, types, defaults, bounds and help; what they mean is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from common.algorithms import BUILT_IN
from common.algorithms.registry import flags
from common.option_types import (
    BelowOne,
    Count,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Share,
    finite,
    whole,
)
from common.tasks.base import Scheme

T = TypeVar("T")

# Marks an option that a resumed run may change: it changes no committed or coming byte.
_CHANGEABLE = {"changeable": True}
# One that a resumed run, moreover, does not have from before.
_ANEW = {"changeable": True, "saved": False}


def _group(name: str, order: int) -> Parameter:
    return Parameter(name="*", group=Group(name, sort_key=order), negative=())


@_group("Run", 1)
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What is learned, for how long, and where it is kept."""

    rounds: Positive = field(default=10, metadata=_CHANGEABLE)
    "Rounds to train."
    task: str = "digits"
    "digits, mnist, fashion_mnist, shakespeare, next_word, or your own, package.module:attribute."
    model: str | None = None
    "Model of the task. Default: the task's first model."
    local_layers: str = ""
    "Regular expression; tensors whose names match it stay on each client (personalised layers), \
e.g. norm."
    data_dir: Path = field(default=Path("data"), metadata=_CHANGEABLE)
    "Folder of the server's test set, for tasks that read files."
    seed: Count = 0
    "Random seed of the run."
    run_dir: Path | None = field(default=None, metadata=_ANEW)
    "Run directory. Default: runs/TIME-TASK."
    resume: bool = field(default=False, metadata=_ANEW)
    "Resume the run in --run-dir, or the newest run in runs/, from its last committed round."
    config: Path | None = field(default=None, metadata=_CHANGEABLE)
    "TOML file with any of these options, e.g. local-epochs = 5. Flags and FOLKMOOT_… variables \
take precedence."


@_group("Data split", 2)
@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How the training data is divided among the clients."""

    num_partitions: Annotated[
        int, Parameter(converter=whole, validator=Number(gte=1, lte=1_000_000))
    ] = 5
    "Number of partitions of the training data, N; client k holds partition k, from 0 to N-1. With \
natural, each partition is one owner's examples, and the N largest owners take part."
    partitioner: Scheme | None = None
    "How the training data is divided. iid: at random; dirichlet: label skew, from a Dirichlet \
distribution; shards: shards of label-sorted data; quantity: sizes from a Dirichlet distribution; \
natural: by owner, e.g. the writer of a digit; none: each client keeps all of its own data. \
Default: the task's own, or else dirichlet; iid where examples have no class."
    alpha: PositiveFloat = 0.5
    "Concentration parameter of dirichlet and quantity; smaller values make clients more different."
    shards_per_client: Positive = 2
    "Shards of the label-sorted data per client, for shards."
    partition_seed: Count | None = None
    "Random seed of the division. Default: --seed."
    validation_fraction: BelowOne = 0.1
    "Fraction of each partition that is the client's validation set."


@_group("Cohort", 3)
@dataclass(frozen=True, kw_only=True)
class CohortOptions:
    """Who takes part in a round, and when it ends."""

    min_clients: Positive = 2
    "Number of connected clients that a round needs before it starts."
    fraction: Share = 1.0
    "Fraction of the connected clients that a round wants updates from (C in McMahan et al.)."
    min_cohort: Positive = 1
    "Lower bound on the number of updates that a round wants."
    over_select: Annotated[float, Parameter(validator=(finite, Number(gte=1)))] = 1.0
    "Select this many times the number of updates that are wanted, and use the first that arrive."
    report_goal: Positive | None = None
    "Number of updates that ends the collecting of a round. Default: as many as --fraction wants."
    quorum: Positive | None = None
    "Smallest number of updates with which a round ends at its deadline. Default: half the goal."
    report_deadline: PositiveFloat = field(default=600.0, metadata=_CHANGEABLE)
    "Seconds that a cohort has for its training, and again for its evaluation."
    max_attempts: Positive = field(default=3, metadata=_CHANGEABLE)
    "Number of attempts at a round before the run fails."
    lease: Annotated[float, Parameter(validator=(finite, Number(gte=1, lte=3600)))] = field(
        default=30.0, metadata=_CHANGEABLE
    )
    "Seconds without a call after which a client counts as disconnected."


@_group("Local training (default: the task's own)", 4)
@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How each client of the cohort trains."""

    local_epochs: (
        Annotated[int, Parameter(converter=whole, validator=Number(gte=1, lte=1_000_000))] | None
    ) = None
    "Local epochs per round (E)."
    batch_size: Positive | None = None
    "Batch size (B)."
    lr: PositiveFloat | None = None
    "Learning rate of the clients' SGD."
    momentum: BelowOne | None = None
    "Momentum of the clients' SGD."
    weight_decay: NonNegativeFloat | None = None
    "L2 penalty of the clients' SGD."
    proximal_mu: NonNegativeFloat | None = None
    "Proximal term mu, for --strategy fedprox or fednova."
    hyperparameters: str = "{}"
    """For a model's constructor or a task's own training: JSON, e.g. '{"dropout": 0.1}'."""


# Those of the built-in strategies, as each declares them.
_OWN: Any = make_dataclass(
    "_OWN",
    [("strategy", str, "fedavg"), *((name, hint | None, None) for name, hint in flags().items())],
    frozen=True,
    kw_only=True,
)


@_group("Strategy (default: the strategy's own)", 5)
@dataclass(frozen=True, kw_only=True)
class StrategyOptions(_OWN):  # type: ignore[misc]
    """How the updates of a round change the model."""

    strategy: Annotated[
        str, Parameter(help=f"{', '.join(BUILT_IN)}, or your own as package.module:Class.")
    ] = "fedavg"
    strategy_options: str = "{}"
    """Options of your own strategy: JSON, e.g. '{"beta": 0.9}'."""


@_group("Evaluation and checkpoints", 6)
@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """When models are evaluated and kept, and when training stops early."""

    evaluate_every: Count = 1
    "The server evaluates on its test set every this many rounds and in the last round; 0: never."
    client_evaluate_every: Count = 1
    "Clients evaluate on their validation sets every this many rounds and in the last round; 0: \
never."
    evaluation_clients: Literal["cohort", "all"] = "cohort"
    "Clients that evaluate: those whose update was accepted, or all that are connected."
    fine_tune_epochs: Count = 0
    "Epochs of fine-tuning before a second evaluation on each client; the tuned model is discarded."
    target_accuracy: Share | None = field(default=None, metadata=_CHANGEABLE)
    "Stop when the accuracy reaches this: the server's, or the clients' if the server never \
evaluates."
    patience: Positive | None = field(default=None, metadata=_CHANGEABLE)
    "Stop after this many evaluations without improvement."
    keep_rounds: Positive = field(default=3, metadata=_CHANGEABLE)
    "Number of committed rounds whose models are kept; the best and the last model always are."


@_group("Limits", 7)
@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """What a client may claim and send, and how many of them there may be."""

    max_examples: Positive = field(default=1_000_000_000, metadata=_CHANGEABLE)
    "Largest num_examples of an update; a larger one is rejected."
    max_update_norm: PositiveFloat | None = field(default=None, metadata=_CHANGEABLE)
    "Largest L2 norm of an update's floating-point values; a longer update is rejected. \
Default: any finite norm."
    max_norm_ratio: NonNegativeFloat | None = field(default=None, metadata=_CHANGEABLE)
    "Largest L2 norm of an update, as a multiple of the median of its round; a longer update is \
left out of the mean. 0: no limit. Default: 100; for multi-krum and norm-bounding, no limit."
    max_share: Share = 1.0
    "Largest weight of one client in the mean, as a fraction of all; larger weights are \
reduced to it."
    max_clients: Positive = field(default=10_000, metadata=_CHANGEABLE)
    "Largest number of connected clients."


@_group("Security", 8)
@dataclass(frozen=True, kw_only=True)
class SecurityOptions:
    """Who may connect; files are PEM and are read again when they change."""

    tls_cert: Path | None = field(default=None, metadata=_CHANGEABLE)
    "Certificate of the server. It turns on TLS; clients then need a join token."
    tls_key: Path | None = field(default=None, metadata=_CHANGEABLE)
    "Private key of the certificate."
    tls_client_ca: Path | None = field(default=None, metadata=_CHANGEABLE)
    "CA of the certificates that clients and operators then need instead of tokens (mutual TLS)."
    tls_crl: Path | None = field(default=None, metadata=_CHANGEABLE)
    "Revocation list of the CA."
    insecure: bool = field(default=False, metadata=_ANEW)
    "Listen in plain text on addresses other than loopback; anyone may connect."


@_group("Process", 9)
@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """Where the server listens and what it uses."""

    bind: str = field(default="127.0.0.1:7070", metadata=_CHANGEABLE)
    "Address for clients; port 0 chooses a free port. 0.0.0.0:7070 serves other machines and needs \
TLS."
    admin_bind: str | None = field(default=None, metadata=_CHANGEABLE)
    "Address for ./scripts/admin. Default: 127.0.0.1 and the port after that of --bind."
    metrics_port: Annotated[
        int | None, Parameter(converter=whole, validator=Number(gte=0, lte=65535))
    ] = field(default=None, metadata=_CHANGEABLE)
    "Port for Prometheus (/metrics) on the host of --admin-bind; 0 chooses a free port."
    otlp_endpoint: str | None = field(default=None, metadata=_CHANGEABLE)
    "OpenTelemetry collector for the traces of rounds, as http://HOST:4317."
    threads: Positive = field(default=1, metadata=_CHANGEABLE)
    "Torch threads. Use 1 if clients train on the same machine."


@_group("Tracking", 10)
@dataclass(frozen=True, kw_only=True)
class TrackingOptions:
    """Where a run is reported to while it goes on."""

    mlflow_uri: str | None = field(default=None, metadata=_CHANGEABLE)
    "MLflow server, e.g. http://127.0.0.1:7027. Default: $MLFLOW_TRACKING_URI."
    mlflow_experiment: str | None = field(default=None, metadata=_CHANGEABLE)
    "MLflow experiment. Default: $MLFLOW_EXPERIMENT_NAME, or folkmoot."
    mlflow_model: str | None = field(default=None, metadata=_CHANGEABLE)
    "Name under which the best model is registered in MLflow."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """All options of a server, by group."""

    run: RunOptions = RunOptions()
    split: SplitOptions = SplitOptions()
    cohort: CohortOptions = CohortOptions()
    training: TrainingOptions = TrainingOptions()
    strategy: StrategyOptions = StrategyOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    limits: LimitOptions = LimitOptions()
    security: SecurityOptions = SecurityOptions()
    process: ProcessOptions = ProcessOptions()
    tracking: TrackingOptions = TrackingOptions()

    def pick(self, kind: type[T], **others: Any) -> T:  # noqa: ANN401 - as the fields are
        """Return a dataclass whose fields are named as options, with the others given."""
        flat = {name: value for group in vars(self).values() for name, value in vars(group).items()}
        names = {one.name for one in fields(cast("Any", kind))} & flat.keys()
        return kind(**{name: flat[name] for name in names} | others)

    def flat(self) -> dict[str, Any]:
        """Return the options by name, without their groups; paths as strings."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for group in asdict(self).values()
            for name, value in group.items()
        }


def _all() -> Iterator[Field[Any]]:
    for group in fields(ServerOptions):
        yield from fields(cast("Any", group.default))


# By name: those that a resumed run may change, and those that it does not have from before.
CHANGEABLE = frozenset(one.name for one in _all() if one.metadata.get("changeable"))
NOT_SAVED = frozenset(one.name for one in _all() if not one.metadata.get("saved", True))


def group_of(name: str) -> list[str]:
    """Return the options of a group of ServerOptions that a resumed run can't change."""
    group = next(one.default for one in fields(ServerOptions) if one.name == name)
    return [one.name for one in fields(cast("Any", group)) if one.name not in CHANGEABLE]
