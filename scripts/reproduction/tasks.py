"""MNIST as hostile clients train it: `./scripts/reproduce hostile` names it for all clients."""

from __future__ import annotations

import os

import torch

from common.tasks import Examples
from common.tasks.mnist import Mnist
from common.training import Metrics, OnStep, TrainConfig

# A process that has this variable is hostile.
HOSTILE = "REPRODUCE_HOSTILE"
_SCALE = 10.0


class AttackedMnist(Mnist):
    """MNIST; a hostile client pushes what it has learned with the wrong sign, ten times as long."""

    def train(
        self,
        model: torch.nn.Module,
        examples: Examples,
        config: TrainConfig,
        seed: int,
        on_step: OnStep,
    ) -> Metrics:
        """Train as everyone does, and then turn the update around."""
        base = {name: value.clone() for name, value in model.state_dict().items()}
        metrics = super().train(model, examples, config, seed, on_step)
        if os.environ.get(HOSTILE):
            for name, value in model.state_dict().items():
                value.lerp_(base[name], 1 + _SCALE)
        return metrics
