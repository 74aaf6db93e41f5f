"""The server's evaluation: one model object and the held-out data, used every evaluated round."""

from pathlib import Path

import torch

from common.tasks import Examples, Task
from common.tensors import open_mapped
from common.training import Evaluation


class Evaluator:
    """Evaluates model files on the task's held-out examples."""

    def __init__(self, task: Task, model: torch.nn.Module, examples: Examples) -> None:
        self._task = task
        self._model = model
        self._examples = examples

    def evaluate(self, path: Path) -> Evaluation:
        """Return the task's evaluation of a model file.

        Raises:
            TensorError: the file is damaged.
        """
        self._model.load_state_dict(open_mapped(path))
        return self._task.evaluate(self._model, self._examples)
