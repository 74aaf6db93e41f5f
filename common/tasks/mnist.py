"""MNIST and Fashion-MNIST, 28×28 pixels, 60,000 and 10,000 images, in torchvision's layout.

The models are those of McMahan et al. 2017 (arXiv 1602.05629), section 3.
"""

from __future__ import annotations

import contextlib
import gzip
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from common.errors import DataError
from common.tasks.base import Examples, Task
from common.tasks.inputs import Images
from common.training import TrainConfig


def cnn() -> nn.Module:
    """Return the paper's CNN: two 5×5 convolutions, 512 units; 1,663,370 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def mlp() -> nn.Module:
    """Return the paper's 2NN: two hidden layers of 200 units; 199,210 parameters."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(28 * 28, 200),
        nn.ReLU(),
        nn.Linear(200, 200),
        nn.ReLU(),
        nn.Linear(200, 10),
    )


class Mnist(Task):
    """Images of shape [1, 28, 28], standardised, and their 10 classes."""

    models = {"cnn": cnn, "mlp": mlp}
    defaults = TrainConfig(local_epochs=1, batch_size=10, learning_rate=0.1)
    # torchvision.datasets' class, which names the folder too.
    source: ClassVar[str] = "MNIST"
    # The training pixels' mean and standard deviation.
    inputs: ClassVar[Images] = Images(28, 28, mean=(0.1307,), std=(0.3081,), dark=True)
    classes: ClassVar[Sequence[str]] = tuple("0123456789")

    def data(self, data_dir: Path, train: bool) -> Examples:
        """Return the images, downloaded to `data_dir` when they are missing there."""
        images, labels = _load(self.source, data_dir, train)
        (mean,), (std,) = self.inputs.mean, self.inputs.std
        inputs = images.unsqueeze(1).float().div_(255).sub_(mean).div_(std)
        return Examples(inputs, labels.long())

    def would_download(self, data_dir: Path) -> bool:
        """Say whether the images' folder is missing."""
        return not _raw(self.source, data_dir).exists()

    def owners(self, data_dir: Path) -> Sequence[str]:
        """Return the writers' numbers, which QMNIST adds (Yadav and Bottou 2019, arXiv 1905.10498).

        Its training examples are MNIST's, in the same order. Read from the file that
        torchvision.datasets.QMNIST downloads; not downloaded here.
        """
        _, labels = _load(self.source, data_dir, train=True)
        path = data_dir / "QMNIST" / "raw" / "qmnist-train-labels-idx2-int.gz"
        try:
            # An idx file: type and dimensions, [n, 8], then the rows: class, series, writer, ...
            numbers = np.frombuffer(gzip.decompress(path.read_bytes()), ">i4")
            rows = numbers[3:].reshape(-1, 8)
            if not np.array_equal(rows[:, 0], labels):
                raise ValueError("its classes are not those of MNIST's training examples")
        except (OSError, EOFError, zlib.error, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(
                f"--data-dir: no readable writers in {path} ({reason}), which --partitioner "
                f"natural needs; torchvision.datasets.QMNIST({str(data_dir)!r}, what='train', "
                "download=True) puts that file there"
            ) from error
        return [str(writer) for writer in rows[:, 2].tolist()]


class FashionMnist(Mnist):
    """Zalando's images of clothes, in the same shapes as MNIST."""

    source = "FashionMNIST"
    inputs = Images(28, 28, mean=(0.2860,), std=(0.3530,), dark=True)
    classes = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    owners = Task.owners


def _raw(source: str, data_dir: Path) -> Path:
    return data_dir / source / "raw"


def _load(source: str, data_dir: Path, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    from torchvision import datasets

    dataset = getattr(datasets, source)
    raw = _raw(source, data_dir)
    try:
        if not raw.exists():
            _download(dataset, source, data_dir)
        loaded = dataset(data_dir, train=train)
    # What torchvision raises on files that are not what their names say.
    except (OSError, RuntimeError, ValueError, EOFError, AssertionError, LookupError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(": ")
        raise DataError(
            f"--data-dir: no readable {source} in {data_dir} ({reason}); "
            f"put its four idx files into {raw}, or name the folder that holds {source}/raw"
        ) from error
    return loaded.data, loaded.targets


def _download(dataset: type, source: str, data_dir: Path) -> None:
    """Download beside the place and rename, so that no other process sees half a data set."""
    made = not data_dir.exists()
    data_dir.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=data_dir) as folder:
            dataset(folder, download=True)
            # Lost only to another process that has just put the same files there.
            with contextlib.suppress(OSError):
                (Path(folder) / source).rename(data_dir / source)
    finally:
        # A mistyped path leaves no folder behind; one that holds anything stays.
        if made:
            with contextlib.suppress(OSError):
                data_dir.rmdir()
