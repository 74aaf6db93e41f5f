"""Small tasks of each kind of outputs and inputs, found as tests.kinds:<name>."""

import torch
from torch import nn
from torch.nn.functional import mse_loss

from common.tasks import Examples, Labels, Map, Task, Values
from common.tasks.inputs import Images
from common.training import Evaluation, TrainConfig


def numbers(train, *shape):
    return torch.randn(200, *shape, generator=torch.Generator().manual_seed(1 if train else 2))


class Column(Task):
    """A number of shape [n, 1], whose targets are of shape [n]."""

    models = {"linear": lambda: nn.Linear(4, 1)}
    outputs = Values(names=("price",), units=("EUR",))
    defaults = TrainConfig(local_epochs=2, batch_size=8, learning_rate=0.05)

    def data(self, data_dir, train):
        inputs = numbers(train, 4)
        return Examples(inputs, inputs.sum(1))


class Flat(Column):
    """The same of shape [n]."""

    models = {"linear": lambda: nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))}


class OwnLoss(Flat):
    """A regression that says nothing, but that its loss is another."""

    outputs = None

    def loss(self, outputs, targets):
        return mse_loss(outputs, targets)


class Several(Column):
    """Two numbers, of which nothing more is said."""

    models = {"linear": lambda: nn.Linear(4, 2)}
    outputs = Values()

    def data(self, data_dir, train):
        inputs = numbers(train, 4)
        return Examples(inputs, inputs[:, :2] * 3)


class Tags(Column):
    """Three labels, each of which holds where a number is positive."""

    models = {"linear": lambda: nn.Linear(4, 3)}
    outputs = Labels(names=("a", "b", "c"))

    def data(self, data_dir, train):
        inputs = numbers(train, 4)
        return Examples(inputs, (inputs[:, :3] > 0).long())


class Scaled(Tags):
    """Its labels are 0 and 255."""

    def data(self, data_dir, train):
        inputs, targets = super().data(data_dir, train)
        return Examples(inputs, targets * 255)


class Years(Column):
    """Its numbers are whole."""

    def data(self, data_dir, train):
        inputs, targets = super().data(data_dir, train)
        return Examples(inputs, targets.round().long())


class Doubles(Column):
    """Inputs as numpy has them where nobody says otherwise."""

    def data(self, data_dir, train):
        inputs, targets = super().data(data_dir, train)
        return Examples(inputs.double(), targets)


class Pixels(Task):
    """Which pixels of a picture of 4×4 are light."""

    models = {"conv": lambda: nn.Conv2d(1, 2, 1)}
    inputs = Images(4, 4, mean=(0.5,), std=(0.25,))
    outputs = Map(names=("dark", "light"))
    defaults = TrainConfig(local_epochs=2, batch_size=8, learning_rate=0.5)

    def data(self, data_dir, train):
        inputs = numbers(train, 1, 4, 4)
        return Examples(inputs, (inputs[:, 0] > 0).long())


class Two:
    """Two tensors that are one input."""

    def __init__(self, left, right):
        self.left, self.right = left, right

    def __len__(self):
        return len(self.left)

    def __getitem__(self, where):
        return Two(self.left[where], self.right[where])

    def to(self, device):
        return Two(self.left.to(device), self.right.to(device))


class Joined(nn.Module):
    """Takes two tensors."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, both):
        return self.linear(torch.cat([both.left, both.right], 1))


class TwoInputs(Task):
    """Its inputs are of two tensors."""

    models = {"joined": Joined}
    classes = ("a", "b", "c")
    defaults = TrainConfig(local_epochs=2, batch_size=8, learning_rate=0.1)

    def data(self, data_dir, train):
        inputs = numbers(train, 4)
        return Examples(Two(inputs[:, :2], inputs[:, 2:]), inputs[:, :3].argmax(1))


class Read:
    """Pictures that are read when they are asked for."""

    def __init__(self, seed):
        self.seed = seed

    def __len__(self):
        return 200

    def __getitem__(self, where):
        return numbers(self.seed, 1, 4, 4)[where]


class Lazy(Task):
    """Its pictures are read when they are needed."""

    models = {"mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 2))}
    defaults = TrainConfig(local_epochs=2, batch_size=8, learning_rate=0.1)

    def data(self, data_dir, train):
        return Examples(Read(train), (numbers(train, 1, 4, 4).mean((1, 2, 3)) > 0).long())


class Own(Column):
    """Its evaluation is its own, and has a metric of its own."""

    outputs = None

    def loss(self, outputs, targets):
        return mse_loss(outputs[:, 0], targets)

    def evaluate(self, model, examples):
        found = super().evaluate(model, examples).metrics
        return Evaluation(found | {"within_one": 0.5})


class Sized(Column):
    """Its model's width is a hyperparameter."""

    @staticmethod
    def mlp(width=3, dropout=0.0):
        return nn.Sequential(nn.Linear(4, width), nn.Dropout(dropout), nn.Linear(width, 1))

    models = {"mlp": mlp}


class Failing(Column):
    """Its evaluation fails."""

    def evaluate(self, model, examples):
        raise ZeroDivisionError("no example is light")


class Misfit(Column):
    """Its model gives two numbers for one."""

    models = {"linear": lambda: nn.Linear(4, 2)}
