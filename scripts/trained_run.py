"""The task and the model of a run, what goes in and what comes out, for what uses the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.errors import DataError, InputError, TensorError
from common.loading import describe
from common.tasks import Examples, Outputs, Task, load_examples, load_task_of_run
from common.tasks.inputs import Images
from common.tasks.outputs import check_tensor
from common.tensor_roles import model_of_run
from server.storage import layout
from server.storage.checkpoints import RunDirectory
from server.storage.run_files import read_json

if TYPE_CHECKING:
    import torch

    from common.tasks.text import TextTask


# Held-out examples that a file is evaluated on: all that MNIST has.
MOST_EXAMPLES = 10_000
_CHECKED = 16


class TrainedRun(NamedTuple):
    """A run's task, one of its models and where that lies, and the run's options by name."""

    task: Task
    model: torch.nn.Module
    path: Path
    options: dict[str, Any]


def load_trained(run_dir: Path, which: str | None = None, task: str | None = None) -> TrainedRun:
    """Return what a run has learned.

    Args:
        run_dir: the run directory.
        which: "best" or "global", which is the last; if None, the best where one was called so.
        task: the run's task, which must be named if it is none of the built-in ones.

    Raises:
        InputError: there is no run, no such model, or no such task; or a task that wasn't named.
    """
    if not RunDirectory(run_dir).holds_run():
        raise InputError(f"there is no run in {run_dir}")
    options = RunDirectory(run_dir).load_config()["options"]
    name = options["task"]
    if task not in (None, name):
        raise InputError(f"--task: the run in {run_dir} is of task {name}, not {task}")
    found = load_task_of_run(name, task)
    names = ("best", "global") if which is None else (which,)
    paths = [layout.model(run_dir, name) for name in names]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        kind = f"model called {which}" if which else "model yet; wait for its first round"
        raise InputError(f"{run_dir} has no {kind}")
    if read_json(path.with_suffix(".json")).get("round") == 0:
        raise InputError(
            f"{run_dir} has no trained model yet, only the one that its first round begins with; "
            "wait for that round, or go on with the run"
        )
    try:
        model = model_of_run(found, options, path)
    except (KeyError, TensorError) as error:
        reason = " ".join(str(error).split())
        kept = options.get("local_layers")
        if kept:
            reason = f"the run left the layers {kept!r} at its clients ({reason})"
        raise InputError(f"{path} is no model of {name} as it is here: {reason}") from error
    return TrainedRun(found, model, path, options)


def read_test_set(task: Task, data_dir: Path) -> Examples:
    """Return a task's held-out examples; nothing is downloaded for them.

    Raises:
        DataError: they are not in `data_dir`, or the task's own code fails.
    """
    if not task.would_download(data_dir):
        return load_examples(task, data_dir, train=False)
    raise DataError(f"--data-dir: the task's data is not in {data_dir}")


def text_task(run: TrainedRun) -> TextTask:
    """Return the task of a run of text.

    Raises:
        InputError: it is a run of something else.
    """
    from common.tasks.text import TextTask

    if not isinstance(run.task, TextTask):
        raise InputError(f"{run.path} is a model of {run.options['task']}, which is not text")
    return run.task


def held_out(task: Task, data_dir: Path) -> Examples | None:
    """Return held-out examples, spread over all; None if the data isn't there."""
    import torch

    try:
        examples = read_test_set(task, data_dir)
    except DataError:
        return None
    count = len(examples.targets)
    if count <= MOST_EXAMPLES:
        return examples if count else None
    chosen = torch.linspace(0, count - 1, MOST_EXAMPLES).long()
    return Examples(examples.inputs[chosen], examples.targets[chosen])


def example_of(task: Task, examples: Examples | None, data_dir: Path) -> torch.Tensor | None:
    """Return inputs to check a file with: held-out ones, or else such as the task takes.

    Returns:
        None: the task's inputs are no tensors.

    Raises:
        InputError: `data_dir` has no held-out ones, and the task doesn't say what it takes.
    """
    import torch

    if examples is not None:
        # Two at least: some sizes are told from others by halving them.
        return _twice(examples.inputs[:_CHECKED])
    if isinstance(task.inputs, Images):
        size = len(task.inputs.mean), task.inputs.height, task.inputs.width
        return torch.randn(_CHECKED, *size)
    length = getattr(task, "length", None)
    if task.inputs is None or length is None:
        raise InputError(
            f"--data-dir: there is no held-out data in {data_dir}, and the task's `inputs` do not "
            "say what a model takes; name the folder of the data"
        )
    return torch.randint(len(task.inputs), (_CHECKED, length))


def _twice(values: object) -> torch.Tensor | None:
    import torch

    return torch.cat([values, values]) if isinstance(values, torch.Tensor) else None


def outputs_of(
    task: Task, model: torch.nn.Module, example: torch.Tensor | None, examples: Examples | None
) -> Outputs | None:
    """Return what a model's outputs are; None: its task does not say.

    Args:
        task: of the model.
        model: is run.
        example: of `example_of`.
        examples: the held-out ones, if there are any.

    Raises:
        InputError: inputs or outputs are not one tensor, or the outputs are not such as the task
            says.
    """
    import torch

    if example is None:
        raise InputError("an input of the task is not one tensor")
    try:
        with torch.inference_mode():
            found = model.eval()(example)
    # The model may be anyone's.
    except Exception as error:
        raise InputError(f"the model does not take the task's inputs: {describe(error)}") from error
    check_tensor(found)
    if len(found) != len(example):
        raise InputError(
            f"the model's outputs for {len(example)} examples are of shape {list(found.shape)}; "
            "there must be a row for each"
        )
    targets = None if examples is None else _twice(examples.targets[:_CHECKED])
    outputs = task.outputs_like(found, targets)
    if outputs is not None:
        outputs.check(found.shape)
    return outputs
