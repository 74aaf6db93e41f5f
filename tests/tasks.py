"""Small tasks for the tests, found as tests.tasks:<name>."""

import os
import time
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from common.tasks import Examples, Task
from common.training import Evaluation, TrainConfig


class Tiny(Task):
    """Three classes of four numbers; trains in milliseconds."""

    models = {"linear": lambda: nn.Linear(4, 3), "mlp": lambda: nn.Sequential(nn.Linear(4, 3))}
    defaults = TrainConfig(local_epochs=1, batch_size=8, learning_rate=0.1)

    def data(self, data_dir, train):
        generator = torch.Generator().manual_seed(1 if train else 2)
        inputs = torch.randn(200, 4, generator=generator)
        return Examples(inputs, inputs[:, :3].argmax(1))


class Owned(Tiny):
    """Half of its examples are ann's, a quarter each bob's and cem's."""

    def owners(self, data_dir):
        return ["ann", "bob", "ann", "cem"] * 50


class Unread(Tiny):
    """Its own code fails where there is no data."""

    def data(self, data_dir, train):
        return (data_dir / "examples").read_bytes()


class Attacked(Tiny):
    """Tiny; where HOSTILE is set, clients push the wrong way, and ten times as far."""

    def train(self, model, examples, config, seed, on_step):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        metrics = super().train(model, examples, config, seed, on_step)
        if os.environ.get("HOSTILE"):
            for name, value in model.state_dict().items():
                value.lerp_(before[name], 11)
        return metrics


class Pairs(Tiny):
    """Two targets an example."""

    def data(self, data_dir, train):
        return Examples(torch.zeros(200, 4), torch.zeros(200, 2))


class Normalised(Tiny):
    """Tiny, with a layer whose tensors' names hold "norm"."""

    models = {
        "mlp": lambda: nn.Sequential(OrderedDict(norm=nn.BatchNorm1d(4), linear=nn.Linear(4, 3)))
    }


class Gated(Tiny):
    """Tiny, whose training waits until the file named by GATE is there."""

    def train(self, model, examples, config, seed, on_step):
        gate = Path(os.environ["GATE"])
        Path(f"{gate}.reached").touch()
        while not gate.exists():
            on_step(0, 1)
            time.sleep(0.02)
        return super().train(model, examples, config, seed, on_step)


class Large(Tiny):
    """A model of 72 MiB, whose training is one addition."""

    models = {"linear": lambda: nn.Linear(4096, 4608)}

    def data(self, data_dir, train):
        return Examples(torch.zeros(40, 1), torch.zeros(40, dtype=torch.long))

    def train(self, model, examples, config, seed, on_step):
        on_step(1, 1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-3)
        return {"loss": 1.0}

    def evaluate(self, model, examples):
        return Evaluation({"loss": 1.0})


class Broken(Tiny):
    """Raises in training."""

    def train(self, model, examples, config, seed, on_step):
        raise RuntimeError("shapes do not fit")


class Diverging(Tiny):
    """Ends with NaN in the weights."""

    def train(self, model, examples, config, seed, on_step):
        with torch.no_grad():
            model.weight.fill_(float("nan"))
        return {"loss": 1.0}


class Holed(Tiny):
    """One training example has a hole."""

    def data(self, data_dir, train):
        inputs, targets = super().data(data_dir, train)
        inputs[7, 1] = torch.nan if train else 0
        return Examples(inputs, targets)


class Exploding(Tiny):
    """Its first round is good, its second goes far away, and training on from there fails."""

    def train(self, model, examples, config, seed, on_step):
        far = float(model.weight.detach().abs().max())
        metrics = super().train(model, examples, config, seed, on_step)
        with torch.no_grad():
            if far > 1e6:
                model.weight.fill_(float("nan"))
            elif far > 10:
                model.weight.mul_(-1e9)
            else:
                model.weight.mul_(100)
        return metrics


class TwoScores(nn.Module):
    """No classifier: two tensors come out."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.linear(inputs), inputs


class TwoHeaded(Tiny):
    """Its model returns two tensors."""

    models = {"two": TwoScores}


class Arrays(Tiny):
    """Data as numpy has it."""

    def data(self, data_dir, train):
        return Examples(*(tensor.numpy() for tensor in super().data(data_dir, train)))
