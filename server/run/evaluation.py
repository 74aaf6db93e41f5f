"""The server's evaluation: one model object and the held-out data, used every evaluated round."""

from pathlib import Path

import torch

from common.errors import FolkmootError, RunFailed
from common.tasks import Examples, Task, describe
from common.tensor_roles import TensorRoles, load_model
from common.tensors import open_mapped
from common.training import Evaluation


class Evaluator:
    """Evaluates model files on the task's held-out examples."""

    def __init__(self, task: Task, model: torch.nn.Module, examples: Examples) -> None:
        self._task = task
        self._model = model
        self._roles = TensorRoles.of(model)
        self._examples = examples

    def evaluate(self, path: Path) -> Evaluation:
        """Return the task's evaluation of a model file.

        Raises:
            TensorError: the file is damaged, or of another model.
            InputError: the model's outputs are not such as the task says.
            RunFailed: the task's own code failed.
        """
        load_model(self._model, open_mapped(path), self._roles)
        return self._evaluate(self._examples)

    def try_out(self, count: int | None = None) -> Evaluation:
        """Evaluate the model as it was made on the first examples, of which there may be fewer.

        Raises:
            InputError: as for `evaluate`.
            RunFailed: as for `evaluate`.
        """
        return self._evaluate(Examples(*(part[slice(count)] for part in self._examples)))

    def _evaluate(self, examples: Examples) -> Evaluation:
        try:
            return self._task.evaluate(self._model, examples)
        except FolkmootError:
            raise
        # The task's own code, which may raise anything.
        except Exception as error:
            raise RunFailed(
                f"--task: its evaluation raised {describe(error)}; mend the task; a run that had "
                "begun goes on with --resume"
            ) from error
