"""The server's evaluation: one model object and the test set, used every evaluated round."""

from pathlib import Path

import torch

from common.errors import DataError, FolkmootError, RunFailed
from common.loading import describe
from common.tasks import Examples, Task
from common.tensor_roles import TensorRoles, load_model
from common.tensors import open_mapped
from common.training import Evaluation


class Evaluator:
    """Evaluates model files on the task's test set."""

    def __init__(self, task: Task, model: torch.nn.Module, examples: Examples) -> None:
        self._task = task
        self._model = model
        self._roles = TensorRoles.of(model)
        self._examples = examples

    def evaluate(self, path: Path) -> Evaluation:
        """Return the task's evaluation of a model file.

        Raises:
            TensorError: the file is damaged, or of another model.
            InputError: the model's outputs are not such as the task says, or its inputs are of
                another dtype.
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
            _check_dtype(self._model, examples)
            raise RunFailed(
                f"--task: its evaluation raised {describe(error)}; mend the task; a run that had "
                "begun goes on with --resume"
            ) from error


def _check_dtype(model: torch.nn.Module, examples: Examples) -> None:
    """Refuse inputs that are of another dtype than a model which failed on them."""
    dtypes = {value.dtype for value in model.parameters() if value.is_floating_point()}
    inputs: object = examples.inputs
    if not isinstance(inputs, torch.Tensor) or not inputs.is_floating_point():
        return
    if len(dtypes) == 1 and inputs.dtype not in dtypes:
        found, wanted = (str(d).removeprefix("torch.") for d in (inputs.dtype, *dtypes))
        raise DataError(
            f"--task: the inputs are of dtype {found}, and the model's parameters of {wanted}; "
            "convert them in the task's data(), e.g. inputs.float()"
        )
