"""A task whose model has as many parameters as one likes, and whose training is one addition."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from common.tasks import Examples, Task
from common.training import Metrics, OnStep, TrainConfig

SIZES = {
    "10k": 10_000,
    "1.66M": 1_663_370,
    "25M": 25_000_000,
    "100M": 100_000_000,
    "250M": 250_000_000,
}
_LARGEST_TENSOR = 4 << 20


class Flat(nn.Module):
    """Parameters, in tensors of at most 4 Mi values; it computes nothing."""

    def __init__(self, num_parameters: int) -> None:
        super().__init__()
        sizes = [
            min(_LARGEST_TENSOR, num_parameters - start)
            for start in range(0, num_parameters, _LARGEST_TENSOR)
        ]
        self.layers = nn.ParameterList(torch.randn(size) for size in sizes)


class Perturbation(Task):
    """Training moves every parameter by the same small step."""

    models = {name: partial(Flat, size) for name, size in SIZES.items()}

    def data(self, data_dir: Path, train: bool) -> Examples:
        """Return examples that nobody looks at, some for each client."""
        return Examples(torch.zeros(1000, 1), torch.zeros(1000, dtype=torch.long))

    def train(
        self,
        model: nn.Module,
        examples: Examples,
        config: TrainConfig,
        seed: int,
        on_step: OnStep,
    ) -> Metrics:
        """Add a constant."""
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-3)
        on_step(1, 1)
        return {"loss": 0.0}
