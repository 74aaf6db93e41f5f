"""The model of a run on a picture, a text or an example of the test set.

Imports torch, and so is imported only where somebody tries a model. Knows nothing about pages.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from common.errors import InputError

# More than any camera has; what is packed into a small file may be larger.
_MOST_PIXELS = 100_000_000


def probabilities(model: torch.nn.Module, values: NDArray[Any]) -> NDArray[np.float64]:
    """Return what a classifier thinks of one example's values, a share for each class.

    Raises:
        InputError: the model takes no such values, or gives no list of classes' scores.
    """
    model.eval()
    try:
        with torch.inference_mode():
            scores = model(torch.from_numpy(values).unsqueeze(0))[0]
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the model does not take this input: {reason}") from error
    if scores.ndim != 1 or len(scores) < 2:
        raise InputError("the model is no classifier: there are no scores of classes to show")
    found: NDArray[np.float64] = scores.double().softmax(0).numpy()
    return found


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
