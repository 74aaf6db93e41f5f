"""From flags to the run's resolved options: the task's defaults, and a resumed run's own.

Knows nothing about networks or rounds.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common import __version__
from common.algorithms import BUILT_IN as BUILT_IN_STRATEGIES
from common.algorithms import Algorithm, Options, Setting, load_algorithm
from common.algorithms.registry import flags, named_again, option_values
from common.config import parse_options
from common.errors import InputError, UnnamedTask
from common.tasks.base import Scheme, Task
from common.tasks.outputs import Classes, Values
from common.tasks.registry import BUILT_IN, naming
from common.tensor_roles import matching
from common.training import Hyperparameter, TrainConfig
from common.urls import without_credentials
from server.engine.cohort import wanted_updates
from server.options import (
    CHANGEABLE,
    NOT_SAVED,
    CohortOptions,
    LimitOptions,
    ServerOptions,
    SplitOptions,
    StrategyOptions,
    TrainingOptions,
)
from server.storage.run_files import FORMAT

if TYPE_CHECKING:
    import torch

    from common.splits import Split

T = TypeVar("T")

RUNS = Path("runs")

# Of a model's tensors, in a message.
_NAMES_SHOWN = 8
# Fields of TrainConfig that are called otherwise than their options.
_FIELDS = {"lr": "learning_rate"}
# Honest updates stay far below; measured over this project's experiments.
_MAX_NORM_RATIO = 100.0
_DESCRIPTION = (
    "Trains one model with the clients that connect: waits for --min-clients of them, then "
    "runs --rounds rounds of federated averaging, evaluates and saves each in the run directory."
)


def parse(
    argv: Sequence[str], program: str = "python -m server", description: str = _DESCRIPTION
) -> ServerOptions | None:
    """Return the options with `run_dir` set, and with a resumed run's own; None after --help.

    Args:
        argv: the flags.
        program: what the user types; its flags are the server's.
        description: what it does, for --help.

    Raises:
        InputError: wrong input, or a flag that contradicts the resumed run.
    """
    options = parse_options(ServerOptions, program, description, argv)
    if options is None:
        return None
    if not options.run.resume:
        folder = options.run.run_dir or _new_run_folder(options.run.task)
        return replace(options, run=replace(options.run, run_dir=folder))
    from server.storage.checkpoints import RunDirectory, newest_run

    folder = options.run.run_dir or newest_run(RUNS)
    if RunDirectory(folder).is_unbegun():  # Nothing of it is lost: it begins.
        return replace(options, run=replace(options.run, run_dir=folder, resume=False))
    if not RunDirectory(folder).holds_run():
        raise InputError(f"--resume: there is no run in {folder}; name its folder with --run-dir")
    given, given_strategy = options.run.task, options.strategy.strategy
    saved = RunDirectory(folder).load_config()["options"]
    kept = {name: value for name, value in saved.items() if name not in NOT_SAVED}
    options = parse_options(ServerOptions, program, description, argv, kept)
    if options is None:
        return None
    # What is given may be a part of what the run has, with the task's defaults, already.
    merged = _merged(_parsed(saved["hyperparameters"]), options.training.hyperparameters)
    own = _merged(
        _parsed(saved.get("strategy_options", "{}")),
        options.strategy.strategy_options,
        "--strategy-options",
    )
    options = replace(
        options,
        run=replace(options.run, run_dir=folder),
        training=replace(options.training, hyperparameters=merged),
        strategy=replace(options.strategy, strategy_options=own),
    )
    _check_same(saved, options.flat(), folder)
    # The directory may be anyone's, and name any module.
    if options.run.task not in {*BUILT_IN, given}:
        raise UnnamedTask(options.run.task)
    strategy = options.strategy.strategy
    if strategy not in {*BUILT_IN_STRATEGIES, given_strategy}:
        raise InputError(
            f"the run's strategy is {strategy}, whose code would run here; if you trust it, "
            f"add --strategy {strategy}"
        )
    return options


def resolve(options: ServerOptions, task: Task) -> ServerOptions:
    """Return the options with the task's defaults in place of what was not given.

    Raises:
        InputError: the task has no such model, or two options can't go together.
    """
    model = options.run.model or next(iter(task.models))
    if model not in task.models:
        known = ", ".join(task.models)
        raise InputError(f"--model: {options.run.task} has no model {model!r}; use one of {known}")
    split = resolve_split(options.split, task, options.run.seed)
    if isinstance(task.outputs, Values):
        from common.splits import Partitioner, check_targets

        # Whole numbers are no classes either, where the task says that they are numbers.
        check_targets(Partitioner(split.partitioner), (1,), whole=False)
    _check_cohort(options.cohort, split)
    _check_evaluation(options)
    _check_target(options, task)
    _check_local_layers(options, task, model)
    given, default = options.training, task.defaults
    kind = load_algorithm(options.strategy.strategy)
    proximal_mu = _first(given.proximal_mu, default.proximal_mu or None)
    chosen = {
        name: _first(value, getattr(default, _FIELDS.get(name, name)))
        for name, value in asdict(given).items()
    }
    chosen["hyperparameters"] = _merged(default.hyperparameters, given.hyperparameters)
    chosen["proximal_mu"] = _first(proximal_mu, kind.proximal_mu or 0.0)
    own = asdict(_chosen(options.strategy, proximal_mu))
    flagged: dict[str, Any] = {name: own.pop(name, None) for name in flags()}
    resolved = replace(
        options,
        run=replace(options.run, model=model),
        split=split,
        training=TrainingOptions(**chosen),
        strategy=replace(
            options.strategy, **flagged, strategy_options=json.dumps(own, sort_keys=True)
        ),
        limits=replace(
            options.limits, max_norm_ratio=_norm_ratio(kind, options.strategy, options.limits)
        ),
    )
    algorithm(resolved).check()
    return resolved


def algorithm(options: ServerOptions) -> Algorithm:
    """Return the algorithm of resolved options."""
    chosen, training = options.strategy, train_config(options.training)
    kind = load_algorithm(chosen.strategy)
    setting = Setting(
        name=chosen.strategy,
        training=training,
        num_clients=options.split.num_partitions,
        wanted=_wanted(options),
        max_share=options.limits.max_share,
    )
    return kind(_chosen(chosen, training.proximal_mu), setting)


def own_code(options: ServerOptions) -> str:
    """Return the flags that name code of the user's own, for a command that goes on with a run."""
    return naming(options.run.task) + named_again(options.strategy.strategy)


def _chosen(options: StrategyOptions, proximal_mu: float | None) -> Options:
    given = {name: getattr(options, name) for name in flags()}
    own = _parsed(options.strategy_options, "--strategy-options")
    return option_values(options.strategy, given, proximal_mu, own)


def _norm_ratio(kind: type[Algorithm], strategy: StrategyOptions, limits: LimitOptions) -> float:
    """Return how many medians long an update may be; 0 is any length."""
    given = limits.max_norm_ratio
    if given and kind.bounds_norms:
        raise InputError(
            f"--max-norm-ratio: --strategy {strategy.strategy} bounds by itself what a long update "
            "does, and counts on all of them; leave it out"
        )
    if given and given < 1:
        raise InputError(
            f"--max-norm-ratio: {given:g} leaves out the median itself; use 1 or more, or 0 to "
            "leave out none"
        )
    return _first(given, 0.0 if kind.bounds_norms else _MAX_NORM_RATIO)


def _wanted(options: ServerOptions) -> int:
    """Return the updates that a round wants once all clients are there."""
    cohort, partitions = options.cohort, options.split.num_partitions
    wanted = cohort.report_goal or wanted_updates(partitions, cohort.fraction, cohort.min_cohort)
    return min(wanted, partitions)


def _check_cohort(cohort: CohortOptions, split: SplitOptions) -> None:
    if cohort.quorum and cohort.report_goal and cohort.quorum > cohort.report_goal:
        raise InputError(
            f"--quorum: {cohort.quorum} updates are more than --report-goal {cohort.report_goal}"
        )
    if split.partitioner == "none":
        return
    wanted_of = {"--min-clients": cohort.min_clients, "--report-goal": cohort.report_goal or 1}
    for flag, wanted in wanted_of.items():
        if wanted > split.num_partitions:
            raise InputError(
                f"{flag}: {wanted} clients are more than --num-partitions "
                f"{split.num_partitions}, and each holds one of its own"
            )


def resolve_split(
    options: SplitOptions, task: Task, seed: int, targets: torch.Tensor | None = None
) -> SplitOptions:
    """Return the options with the task's own partitioner and --seed for what was not given.

    Args:
        options: as they were given.
        task: to be split.
        seed: of the run.
        targets: of the task's test set, if they are at hand: whether they are classes.

    Raises:
        InputError: the task can't be split so.
    """
    partitioner = _first(options.partitioner, _first(task.partitioner, _usual(task, targets)))
    # Known without the training data, which a server need not have.
    if partitioner == "natural" and type(task).owners is Task.owners:
        task.owners(Path())
    partition_seed = _first(options.partition_seed, seed)
    return replace(options, partitioner=partitioner, partition_seed=partition_seed)


def _usual(task: Task, targets: torch.Tensor | None) -> Scheme:
    """Return the scheme for tasks that name none: by class, if there are classes."""
    if isinstance(task.outputs, Values):
        found = False
    elif targets is not None:
        from common.splits import are_classes

        found = are_classes(targets.shape, whole=not targets.is_floating_point())
    else:
        found = task.outputs is None or type(task.outputs) is Classes
    return "dirichlet" if found else "iid"


def data_split(options: SplitOptions) -> Split:
    """Return resolved split options as a split."""
    from common.splits import Partitioner, Split

    values = asdict(options)
    partitioner, seed = values.pop("partitioner"), values.pop("partition_seed")
    return Split(partitioner=Partitioner(partitioner), seed=seed or 0, **values)


def _check_evaluation(options: ServerOptions) -> None:
    """Refuse what asks for the clients' evaluation when there is none."""
    wanted = options.evaluation
    for flag, asked in (
        ("--fine-tune-epochs", wanted.fine_tune_epochs > 0),
        ("--evaluation-clients", wanted.evaluation_clients != "cohort"),
    ):
        for never, value in (
            ("--client-evaluate-every", wanted.client_evaluate_every),
            ("--validation-fraction", options.split.validation_fraction),
        ):
            if asked and not value:
                raise InputError(
                    f"{flag}: with {never} 0 no client evaluates; leave one of the two out"
                )


def _check_target(options: ServerOptions, task: Task) -> None:
    """Refuse a target that the task is known never to reach."""
    said = task.outputs
    if said is not None and not isinstance(said, Classes) and type(task).evaluate is Task.evaluate:
        check_accuracy(options, ())


def check_accuracy(options: ServerOptions, metrics: Container[str]) -> None:
    """Refuse --target-accuracy where an evaluation has no accuracy.

    Args:
        options: of the run.
        metrics: the names of what is evaluated.

    Raises:
        InputError: it is given, and there is none.
    """
    if options.evaluation.target_accuracy is not None and "accuracy" not in metrics:
        raise InputError(
            f"--target-accuracy: the evaluation of {options.run.task} has no accuracy, only "
            "classes have; leave it out (--patience goes by the loss)"
        )


def _check_local_layers(options: ServerOptions, task: Task, model: str) -> None:
    pattern = options.run.local_layers
    if not pattern:
        return
    if options.evaluation.evaluate_every:
        raise InputError(
            "--local-layers: the server has none of the layers that stay at the clients, and "
            "can't evaluate without; add --evaluate-every 0: the clients evaluate"
        )
    names = list(task.build(model, _hyperparameters(options, task)).state_dict())
    local = matching(names, pattern)
    if not local or len(local) == len(names):
        some = ", ".join(names[:_NAMES_SHOWN]) + ", ..." * (len(names) > _NAMES_SHOWN)
        raise InputError(
            f"--local-layers: {pattern!r} matches {'all' if local else 'none'} of the model's "
            f"tensors: {some}"
        )


def train_config(options: TrainingOptions) -> TrainConfig:
    """Return resolved training options as the clients' configuration."""
    given = {_FIELDS.get(k, k): v for k, v in asdict(options).items() if v is not None}
    return TrainConfig(**given | {"hyperparameters": _parsed(options.hyperparameters)})


def describe(options: ServerOptions, run_id: str) -> dict[str, Any]:
    """Return what config.json holds: the resolved options, and the versions they ran with."""
    import torch

    groups = asdict(options).values()
    saved = {name: _kept(value) for group in groups for name, value in group.items()}
    if options.tracking.mlflow_uri:
        saved["mlflow_uri"] = without_credentials(options.tracking.mlflow_uri)
    return {
        "format": FORMAT,
        "run_id": run_id,
        "options": saved,
        "versions": {
            "folkmoot": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _hyperparameters(options: ServerOptions, task: Task) -> dict[str, Hyperparameter]:
    """Return the task's own and those that are given."""
    return {**task.defaults.hyperparameters, **_parsed(options.training.hyperparameters)}


def _kept(value: object) -> object:
    """Return an option's value as JSON; a path so that it is the same one from any folder."""
    if not isinstance(value, Path):
        return value
    # What is not there may be a default, which means the folder where a command is given.
    return str(value.absolute() if value.exists() else value)


def _merged(
    before: Mapping[str, Hyperparameter], given: str, flag: str = "--hyperparameters"
) -> str:
    return json.dumps({**before, **_parsed(given, flag)}, sort_keys=True)


def _parsed(text: str, flag: str = "--hyperparameters") -> dict[str, Hyperparameter]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"{flag}: {text!r} is not JSON: {error}") from error
    if not isinstance(value, dict) or not all(map(_is_hyperparameter, value.values())):
        raise InputError(
            f"{flag}: {text!r} is not a JSON object of finite numbers, strings and booleans"
        )
    return value


def _is_hyperparameter(value: object) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _first(value: T | None, default: T) -> T:
    return default if value is None else value


def _new_run_folder(task: str) -> Path:
    name = "".join(c if c.isalnum() else "-" for c in task)
    stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
    folder, count = RUNS / stem, 1
    while folder.exists():
        count += 1
        folder = RUNS / f"{stem}-{count}"
    return folder


def _check_same(saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    if now["rounds"] < saved["rounds"]:
        raise InputError(
            f"--rounds: the run in {folder} has {saved['rounds']}; resumed, it can be longer, "
            "not shorter"
        )
    for name, before in saved.items():
        if name not in CHANGEABLE and now.get(name) != before:
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{flag}: the run in {folder} has {before}, not {now.get(name)}; "
                "leave the flag out, or start a new run"
            )
