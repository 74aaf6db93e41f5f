"""The model of a run on one example's values.

Imports torch, and so is imported only where somebody tries a model. Knows nothing about pages.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import InputError
from common.tasks import Outputs, Task, Values
from common.tasks.outputs import check_tensor


class Prediction(NamedTuple):
    """What a model says of one example, and what its outputs are; None: its task does not say."""

    outputs: Outputs | None
    # As `Outputs.predict` returns it; without outputs, the model's numbers.
    values: NDArray[np.float64]


def predict(task: Task, model: torch.nn.Module, example: Any, target: Any = None) -> Prediction:  # noqa: ANN401
    """Return what a model says of one example.

    Args:
        task: of the model.
        model: to be asked.
        example: a batch of one, as the task's inputs are.
        target: of shape [1, ...], if it is known.

    Raises:
        InputError: the model does not take it, or its outputs are not such as the task says.
    """
    model.eval()
    try:
        with torch.inference_mode():
            found = model(example)
    # The model may be anyone's.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the model does not take this input: {reason}") from error
    check_tensor(found)
    outputs = task.outputs_like(found, target)
    if outputs is not None:
        outputs.check(found.shape)
    return Prediction(outputs, (outputs or Values()).predict(found.numpy())[0])
