"""Handwritten digits, 8×8 pixels, 1,797 of them: scikit-learn's bundled data, no download.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from common.tasks.base import Examples, Task
from common.tasks.inputs import Images
from common.training import TrainConfig

_HELD_OUT = 360  # A fifth.


def cnn() -> nn.Module:
    """Return two 3×3 convolutions (16 and 32 channels, each pooled) and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 2 * 2, 10),
    )


class Digits(Task):
    """Images of shape [1, 8, 8] with values from 0 to 1, and their 10 classes."""

    models = {"cnn": cnn}
    inputs = Images(8, 8, mean=(0.0,), std=(1.0,), dark=True)
    classes = tuple("0123456789")
    defaults = TrainConfig(local_epochs=5, batch_size=16, learning_rate=0.1)

    def data(self, data_dir: Path, train: bool) -> Examples:
        """Return the images; which fifth is held out is fixed."""
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        # The bundled order goes by writer: a fixed shuffle puts every writer on both sides.
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        chosen = order[_HELD_OUT:] if train else order[:_HELD_OUT]
        inputs = torch.from_numpy(images).float().div_(16).reshape(-1, 1, 8, 8)
        return Examples(inputs[chosen], torch.from_numpy(labels)[chosen])
