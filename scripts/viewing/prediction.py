"""The model of a run on a picture, a text or an example of the test set.

Imports torch, and so is imported only where somebody tries a model. Knows nothing about pages.
"""

from __future__ import annotations

import io
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from common.errors import InputError
from common.tasks import Outputs, Task, Values
from common.tasks.outputs import check_tensor

# More than any camera has; what is packed into a small file may be larger.
_MOST_PIXELS = 100_000_000


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


def picture(data: bytes) -> Image.Image:
    """Return the picture of a file.

    Raises:
        InputError: it is no picture, or a huge one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            found = Image.open(io.BytesIO(data))
            if found.width * found.height > _MOST_PIXELS:
                raise InputError(
                    f"the picture has more than {_MOST_PIXELS:,} pixels; use a smaller one"
                )
            found.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning) as error:
        raise InputError(f"this is no picture that can be read: {error}") from error
    return found
