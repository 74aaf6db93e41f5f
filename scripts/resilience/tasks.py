"""A task of 4 MiB whose training takes as long as one likes, and ends with the same bytes."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from common.tasks import Examples, Task
from common.training import Evaluation, Metrics, OnStep, TrainConfig

_STEPS = 20


class Steps(Task):
    """Training adds what the seed and the partition's examples say, step by step."""

    models = {"linear": lambda: nn.Linear(1024, 1024)}

    def data(self, data_dir: Path, train: bool) -> Examples:
        """Return examples of four classes, not the same for training and evaluation."""
        generator = torch.Generator().manual_seed(1 if train else 2)
        return Examples(torch.randn(400, 4, generator=generator), torch.arange(400) % 4)

    def train(
        self,
        model: nn.Module,
        examples: Examples,
        config: TrainConfig,
        seed: int,
        on_step: OnStep,
    ) -> Metrics:
        """Add noise of the seed, scaled by the examples' mean; take --hyperparameters' seconds."""
        pause = float(config.hyperparameters.get("seconds", 0.0)) / _STEPS
        generator = torch.Generator().manual_seed(seed)
        scale = 1e-3 * (1 + examples.inputs.mean().item())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
        for step in range(_STEPS):
            time.sleep(pause)
            on_step(step + 1, _STEPS)
        return {"loss": scale}

    def evaluate(self, model: nn.Module, examples: Examples) -> Evaluation:
        """Return something that follows from the model."""
        return Evaluation({"loss": sum(p.abs().mean().item() for p in model.parameters())})


class Zeros(Task):
    """A model of 32 MiB whose values are all 0 at first; nobody trains it here."""

    models = {"flat": lambda: _zeros(1 << 23)}

    def data(self, data_dir: Path, train: bool) -> Examples:
        """Return examples that nobody looks at."""
        return Examples(torch.zeros(100, 1), torch.zeros(100, dtype=torch.long))


def _zeros(size: int) -> nn.Module:
    return nn.ParameterList([torch.zeros(size)])
