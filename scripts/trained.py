"""The task and the model of a run of text, for the scripts that use what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common.errors import InputError, TensorError
from common.tasks import load_task
from common.tensors import open_mapped
from server.checkpoints import RunDirectory

if TYPE_CHECKING:
    import torch

    from common.tasks.text import TextTask


class Trained(NamedTuple):
    """A run's text task, and its best model; the last one where none was called the best."""

    task: TextTask
    model: torch.nn.Module
    path: Path


def load_trained(run_dir: Path) -> Trained:
    """Return what a run has learned.

    Raises:
        InputError: there is no run, no model or no text task.
    """
    from common.tasks.text import TextTask

    if not RunDirectory(run_dir).holds_run():
        raise InputError(f"--run-dir: there is no run in {run_dir}")
    options = RunDirectory(run_dir).load_config()["options"]
    task = load_task(options["task"])
    if not isinstance(task, TextTask):
        raise InputError(f"--run-dir: {run_dir} is a run of {options['task']}, which is not text")
    paths = [run_dir / "models" / f"{name}.safetensors" for name in ("best", "global")]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise InputError(f"--run-dir: {run_dir} has no model yet; wait for its first round")
    try:
        model = task.models[options["model"]]()
        model.load_state_dict(open_mapped(path))
    except (KeyError, RuntimeError, TensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"--run-dir: {path} is no model of {options['task']} as it is here: {reason}"
        ) from error
    return Trained(task, model, path)
