"""The model of a run on one example's values.

Imports torch, and so is imported only where somebody tries a model. Knows nothing about pages.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import InputError


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
