"""The server's options: one frozen dataclass for each group of `python -m server --help`.

Only names, types, defaults, bounds and help; what they mean is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from common.config import finite, whole
from common.tasks.base import Scheme

T = TypeVar("T")

Positive = Annotated[int, Parameter(converter=whole, validator=Number(gte=1))]
Count = Annotated[int, Parameter(converter=whole, validator=Number(gte=0))]
PositiveFloat = Annotated[float, Parameter(validator=(finite, Number(gt=0)))]
NonNegativeFloat = Annotated[float, Parameter(validator=(finite, Number(gte=0)))]
BelowOne = Annotated[float, Parameter(validator=(finite, Number(gte=0, lt=1)))]
Share = Annotated[float, Parameter(validator=(finite, Number(gt=0, lte=1)))]

StrategyName = Literal[
    "fedavg",
    "fedavgm",
    "fedadagrad",
    "fedadam",
    "fedyogi",
    "fedprox",
    "scaffold",
    "fednova",
    "median",
    "trimmed-mean",
    "multi-krum",
    "norm-bounding",
]


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
    "digits, mnist, fashion_mnist, shakespeare, next_word, or your own as package.module:attribute."
    model: str | None = None
    "One of the task's models; the task's first if not given."
    local_layers: str = ""
    "Tensors that stay at each client: those whose name this regular expression finds, e.g. norm."
    data_dir: Path = field(default=Path("data"), metadata=_CHANGEABLE)
    "Folder of the data that the server evaluates on, for tasks that read files."
    seed: Count = 0
    "Seed of every random choice of the run."
    run_dir: Path | None = field(default=None, metadata=_ANEW)
    "Folder of this run; runs/TIME-TASK if not given."
    resume: bool = field(default=False, metadata=_ANEW)
    "Go on with the run in --run-dir, or with the newest in runs/, from its last commit."
    config: Path | None = field(default=None, metadata=_CHANGEABLE)
    "TOML file with any of these options, e.g. local-epochs = 5; flags and FOLKMOOT_… go first."


@_group("Data split", 2)
@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How the training data is divided among the clients."""

    num_partitions: Annotated[
        int, Parameter(converter=whole, validator=Number(gte=1, lte=1_000_000))
    ] = 5
    "Partitions that the training data is divided into; clients hold 0 to one less. With natural, \
the owners with the most examples have one each, and the others' are left out."
    partitioner: Scheme | None = None
    "iid: at random; dirichlet: each class by Dirichlet shares; shards: of label-sorted data; \
quantity: all by Dirichlet shares; natural: by owner, e.g. who wrote the digit; none: all of \
one's data. The task's own if not given."
    alpha: PositiveFloat = 0.5
    "Dirichlet concentration of dirichlet and quantity: the smaller, the more the clients differ."
    shards_per_client: Positive = 2
    "Shards of the label-sorted data that each client holds."
    partition_seed: Count | None = None
    "Seed of the division; --seed if not given."
    validation_fraction: BelowOne = 0.1
    "Share of each partition that its client holds out to evaluate on."


@_group("Cohort", 3)
@dataclass(frozen=True, kw_only=True)
class CohortOptions:
    """Who takes part in a round, and when it ends."""

    min_clients: Positive = 2
    "Clients that must be there before a round starts."
    fraction: Share = 1.0
    "Share of the clients there that a round wants updates from."
    min_cohort: Positive = 1
    "Updates wanted at least, whatever --fraction makes of it."
    over_select: Annotated[float, Parameter(validator=(finite, Number(gte=1)))] = 1.0
    "Select this many times the updates wanted, and take the first that come."
    report_goal: Positive | None = None
    "Updates that end a round's collecting; what --fraction wants if not given."
    quorum: Positive | None = None
    "Updates that suffice when nobody else will report; half the goal if not given."
    report_deadline: PositiveFloat = field(default=600.0, metadata=_CHANGEABLE)
    "Seconds that a cohort has to report, and again to evaluate."
    max_attempts: Positive = field(default=3, metadata=_CHANGEABLE)
    "Attempts at a round that may miss the quorum before the run fails."
    lease: Annotated[float, Parameter(validator=(finite, Number(gte=1, lte=3600)))] = field(
        default=30.0, metadata=_CHANGEABLE
    )
    "Seconds without a sign of life after which a client counts as gone."


@_group("Local training (if not given: the task's own)", 4)
@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How each client of the cohort trains."""

    local_epochs: (
        Annotated[int, Parameter(converter=whole, validator=Number(gte=1, lte=1_000_000))] | None
    ) = None
    "Passes over the client's examples in a round."
    batch_size: Positive | None = None
    "Examples in a step."
    lr: PositiveFloat | None = None
    "Learning rate of the clients' SGD."
    momentum: BelowOne | None = None
    "Momentum of the clients' SGD."
    weight_decay: NonNegativeFloat | None = None
    "L2 penalty of the clients' SGD."
    proximal_mu: NonNegativeFloat | None = None
    "Strength of the pull towards the global model, for --strategy fedprox or fednova."
    hyperparameters: str = "{}"
    """For a model's constructor or a task's own training: JSON, e.g. '{"dropout": 0.1}'."""


@_group("Strategy (if not given: the strategy's own)", 5)
@dataclass(frozen=True, kw_only=True)
class StrategyOptions:
    """How the updates of a round change the model."""

    strategy: StrategyName = "fedavg"
    "Mean by examples; its server optimizers; FedProx, SCAFFOLD, FedNova; robust ones."
    server_lr: PositiveFloat | None = None
    "Learning rate on the combined update."
    server_momentum: BelowOne | None = None
    "Momentum on the combined update; beta1 of fedadagrad, fedadam and fedyogi."
    server_beta2: BelowOne | None = None
    "Decay of the second moment, for fedadam and fedyogi."
    server_tau: PositiveFloat | None = None
    "What is added to the second moment's root, for fedadagrad, fedadam and fedyogi."
    trim_fraction: Annotated[float | None, Parameter(validator=(finite, Number(gte=0, lt=0.5)))] = (
        None
    )
    "Share of the updates that trimmed-mean leaves out at each end."
    num_hostile: Count | None = None
    "Updates of a round that multi-krum takes for hostile; the most that it can, if not given."
    norm_bound: PositiveFloat | None = None
    "L2 norm that norm-bounding scales longer updates down to."


@_group("Evaluation and checkpoints", 6)
@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """When models are evaluated and kept, and when training stops early."""

    evaluate_every: Count = 1
    "The server evaluates on held-out data every this many rounds and in the last; 0 never."
    client_evaluate_every: Count = 1
    "Clients evaluate on their validation parts every this many rounds and in the last; 0 never."
    evaluation_clients: Literal["cohort", "all"] = "cohort"
    "Who evaluates: those whose update was accepted, or every client that is there."
    fine_tune_epochs: Count = 0
    "Clients evaluate again after this many epochs on their own examples, and throw those away."
    target_accuracy: Share | None = field(default=None, metadata=_CHANGEABLE)
    "Stop once the accuracy (the server's; if it never evaluates, the clients') reaches this."
    patience: Positive | None = field(default=None, metadata=_CHANGEABLE)
    "Stop after this many evaluations without a new best."
    keep_rounds: Positive = field(default=3, metadata=_CHANGEABLE)
    "Committed rounds whose models are kept; the best and the last always are."


@_group("Limits", 7)
@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """What a client may claim and send, and how many of them there may be."""

    max_examples: Positive = field(default=1_000_000_000, metadata=_CHANGEABLE)
    "Examples that a client may claim to have trained on; an update that claims more is refused."
    max_update_norm: PositiveFloat | None = field(default=None, metadata=_CHANGEABLE)
    (
        "L2 norm of an update's floating-point values above which it is refused; "
        "any finite one is taken if not given."
    )
    max_norm_ratio: NonNegativeFloat | None = field(default=None, metadata=_CHANGEABLE)
    "An update's L2 norm, in medians of its round's, above which it is left out of the mean; 0 is \
any. 100 if not given; multi-krum and norm-bounding have none."
    max_share: Share = 1.0
    "Share of a round's mean that one client's update may have; heavier ones count as that much."
    max_clients: Positive = field(default=10_000, metadata=_CHANGEABLE)
    "Clients that may be connected at a time."


@_group("Security", 8)
@dataclass(frozen=True, kw_only=True)
class SecurityOptions:
    """Who may connect; files are PEM and are read again when they change."""

    tls_cert: Path | None = field(default=None, metadata=_CHANGEABLE)
    "The server's certificate; with it all is encrypted, and clients need a join token."
    tls_key: Path | None = field(default=None, metadata=_CHANGEABLE)
    "The certificate's private key."
    tls_client_ca: Path | None = field(default=None, metadata=_CHANGEABLE)
    "CA of the clients' and operators' certificates, which they then need instead of tokens."
    tls_crl: Path | None = field(default=None, metadata=_CHANGEABLE)
    "The CA's revocation list."
    insecure: bool = field(default=False, metadata=_ANEW)
    "Listen on other addresses than loopback in plain text, for anyone."


@_group("Process", 9)
@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """Where the server listens and what it uses."""

    bind: str = field(default="127.0.0.1:7070", metadata=_CHANGEABLE)
    "Address for clients; port 0 takes a free one. 0.0.0.0:7070 serves other machines, with TLS."
    admin_bind: str | None = field(default=None, metadata=_CHANGEABLE)
    "Address for ./scripts/admin; the port after --bind's, on 127.0.0.1, if not given."
    metrics_port: Annotated[
        int | None, Parameter(converter=whole, validator=Number(gte=0, lte=65535))
    ] = field(default=None, metadata=_CHANGEABLE)
    "Port on --admin-bind's host where Prometheus finds /metrics; 0 takes a free one."
    otlp_endpoint: str | None = field(default=None, metadata=_CHANGEABLE)
    "OpenTelemetry collector that each round's trace goes to, as http://HOST:4317."
    threads: Positive = field(default=1, metadata=_CHANGEABLE)
    "Torch threads; 1 is right where clients train on the same machine."


@_group("Tracking", 10)
@dataclass(frozen=True, kw_only=True)
class TrackingOptions:
    """Where a run is reported to while it goes on."""

    mlflow_uri: str | None = field(default=None, metadata=_CHANGEABLE)
    "MLflow server to report to, e.g. http://127.0.0.1:7027; $MLFLOW_TRACKING_URI if not given."
    mlflow_experiment: str | None = field(default=None, metadata=_CHANGEABLE)
    "MLflow experiment; $MLFLOW_EXPERIMENT_NAME, or else folkmoot, if not given."
    mlflow_model: str | None = field(default=None, metadata=_CHANGEABLE)
    "Name that the best model is registered under in MLflow."


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
