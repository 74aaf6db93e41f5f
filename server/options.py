"""The server's options: one frozen dataclass for each group of `python -m server --help`.

Only names, types, defaults, bounds and help; what they mean is decided elsewhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

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


def _group(name: str, order: int) -> Parameter:
    return Parameter(name="*", group=Group(name, sort_key=order), negative=())


@_group("Run", 1)
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What is learned, for how long, and where it is kept."""

    rounds: Positive = 10
    "Rounds to train."
    task: str = "digits"
    "digits, mnist, fashion_mnist, shakespeare, next_word, or your own as package.module:attribute."
    model: str | None = None
    "One of the task's models; the task's first if not given."
    local_layers: str = ""
    "Tensors that stay at each client: those whose name this regular expression finds, e.g. norm."
    data_dir: Path = Path("data")
    "Folder of the data that the server evaluates on, for tasks that read files."
    seed: Count = 0
    "Seed of every random choice of the run."
    run_dir: Path | None = None
    "Folder of this run; runs/TIME-TASK if not given."
    resume: bool = False
    "Go on with the run in --run-dir, or with the newest in runs/, from its last commit."
    config: Path | None = None
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
    report_deadline: PositiveFloat = 600.0
    "Seconds that a cohort has to report, and again to evaluate."
    max_attempts: Positive = 3
    "Attempts at a round that may miss the quorum before the run fails."
    lease: Annotated[float, Parameter(validator=(finite, Number(gte=1, lte=3600)))] = 30.0
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


# Those of the built-in strategies, as each declares them.
_OWN: Any = make_dataclass(
    "_OWN",
    [("strategy", str, "fedavg"), *((name, hint | None, None) for name, hint in flags().items())],
    frozen=True,
    kw_only=True,
)


@_group("Strategy (if not given: the strategy's own)", 5)
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
    "The server evaluates on held-out data every this many rounds and in the last; 0 never."
    client_evaluate_every: Count = 1
    "Clients evaluate on their validation parts every this many rounds and in the last; 0 never."
    evaluation_clients: Literal["cohort", "all"] = "cohort"
    "Who evaluates: those whose update was accepted, or every client that is there."
    fine_tune_epochs: Count = 0
    "Clients evaluate again after this many epochs on their own examples, and throw those away."
    target_accuracy: Share | None = None
    "Stop once the accuracy (the server's; if it never evaluates, the clients') reaches this."
    patience: Positive | None = None
    "Stop after this many evaluations without a new best."
    keep_rounds: Positive = 3
    "Committed rounds whose models are kept; the best and the last always are."


@_group("Limits", 7)
@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """What a client may claim and send, and how many of them there may be."""

    max_examples: Positive = 1_000_000_000
    "Examples that a client may claim to have trained on; an update that claims more is refused."
    max_update_norm: PositiveFloat | None = None
    (
        "L2 norm of an update's floating-point values above which it is refused; "
        "any finite one is taken if not given."
    )
    max_norm_ratio: NonNegativeFloat | None = None
    "An update's L2 norm, in medians of its round's, above which it is left out of the mean; 0 is \
any. 100 if not given; multi-krum and norm-bounding have none."
    max_share: Share = 1.0
    "Share of a round's mean that one client's update may have; heavier ones count as that much."
    max_clients: Positive = 10_000
    "Clients that may be connected at a time."


@_group("Security", 8)
@dataclass(frozen=True, kw_only=True)
class SecurityOptions:
    """Who may connect; files are PEM and are read again when they change."""

    tls_cert: Path | None = None
    "The server's certificate; with it all is encrypted, and clients need a join token."
    tls_key: Path | None = None
    "The certificate's private key."
    tls_client_ca: Path | None = None
    "CA of the clients' and operators' certificates, which they then need instead of tokens."
    tls_crl: Path | None = None
    "The CA's revocation list."
    insecure: bool = False
    "Listen on other addresses than loopback in plain text, for anyone."


@_group("Process", 9)
@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """Where the server listens and what it uses."""

    bind: str = "127.0.0.1:7070"
    "Address for clients; port 0 takes a free one. 0.0.0.0:7070 serves other machines, with TLS."
    admin_bind: str | None = None
    "Address for ./scripts/admin; the port after --bind's, on 127.0.0.1, if not given."
    metrics_port: Annotated[
        int | None, Parameter(converter=whole, validator=Number(gte=0, lte=65535))
    ] = None
    "Port on --admin-bind's host where Prometheus finds /metrics; 0 takes a free one."
    otlp_endpoint: str | None = None
    "OpenTelemetry collector that each round's trace goes to, as http://HOST:4317."
    threads: Positive = 1
    "Torch threads; 1 is right where clients train on the same machine."


@_group("Tracking", 10)
@dataclass(frozen=True, kw_only=True)
class TrackingOptions:
    """Where a run is reported to while it goes on."""

    mlflow_uri: str | None = None
    "MLflow server to report to, e.g. http://127.0.0.1:7027; $MLFLOW_TRACKING_URI if not given."
    mlflow_experiment: str | None = None
    "MLflow experiment; $MLFLOW_EXPERIMENT_NAME, or else folkmoot, if not given."
    mlflow_model: str | None = None
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

    def flat(self) -> dict[str, Any]:
        """Return the options by name, without their groups; paths as strings."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for group in asdict(self).values()
            for name, value in group.items()
        }
