"""The task and the model of a run, for the scripts that use what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.errors import DataError, InputError, TensorError
from common.tasks import Examples, Task, load_examples, load_task_of_run
from common.tensors import open_mapped
from server.storage import layout
from server.storage.checkpoints import RunDirectory
from server.storage.run_files import read_json

if TYPE_CHECKING:
    import torch

    from common.tasks.text import TextTask


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
        model = found.build(options["model"], json.loads(options.get("hyperparameters", "{}")))
        model.load_state_dict(open_mapped(path))
    except (KeyError, RuntimeError, TensorError) as error:
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
