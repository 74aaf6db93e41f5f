"""What a task is: models, data, and (by default, a classifier's) training and evaluation.

Subclass `Task` for one's own. A task knows nothing about partitions, rounds or the wire.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from common import training
from common.errors import InputError
from common.tasks.inputs import Inputs
from common.training import Evaluation, Metrics, OnStep, TrainConfig

if TYPE_CHECKING:
    import torch

# What --partitioner may be; common/splits.py says what each does.
Scheme = Literal["iid", "dirichlet", "shards", "quantity", "natural", "none"]


class Examples(NamedTuple):
    """Tensors in memory: inputs of shape [n, ...] and targets of shape [n, ...]."""

    inputs: torch.Tensor
    targets: torch.Tensor


class Task(ABC):
    """A learning problem. The smallest complete one sets `models` and defines `data`."""

    # The models by name; the first is the default. Each call makes a new one, whose weights
    # come from torch's global random state, which the server seeds.
    models: ClassVar[Mapping[str, Callable[[], torch.nn.Module]]]
    # What --local-epochs, --batch-size, --lr and the like are when they are not given.
    defaults: ClassVar[TrainConfig] = TrainConfig()
    # What a person's picture or text becomes an input by, and the names of the classes.
    inputs: ClassVar[Inputs | None] = None
    classes: ClassVar[Sequence[str]] = ()
    # What --partitioner is when it is not given.
    partitioner: ClassVar[Scheme] = "dirichlet"

    @abstractmethod
    def data(self, data_dir: Path, train: bool) -> Examples:
        """Return the training examples, or the held-out ones that the server evaluates on.

        Called once in a process. The targets' class indices (shape [n]) are what the
        partitioners dirichlet and shards divide by.

        Raises:
            DataError: the data is missing or can't be read.
        """

    def would_download(self, data_dir: Path) -> bool:
        """Say whether `data` would fetch what is not there, for those who only look at a run."""
        return False

    def owners(self, data_dir: Path) -> Sequence[str]:
        """Return whose each training example is, in the order of `data`, for natural splits.

        Raises:
            DataError: what tells it is missing or can't be read.
            InputError: the task does not say; so it is unless overridden.
        """
        raise InputError(
            f"--partitioner natural: task {type(self).__name__} does not say whose each example "
            "is; use another partitioner, or define the task's `owners`"
        )

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch; cross-entropy unless overridden."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets)

    def train(
        self,
        model: torch.nn.Module,
        examples: Examples,
        config: TrainConfig,
        seed: int,
        on_step: OnStep,
    ) -> Metrics:
        """Train `model` in place and return means such as "loss"; see `common.training.train`.

        That also says what becomes of a last batch of one example where the model has batch
        normalisation.
        """
        return training.train(model, *examples, config, self.loss, seed, on_step)

    def evaluate(self, model: torch.nn.Module, examples: Examples) -> Evaluation:
        """Return means over the examples: "loss", and "accuracy" where there is one.

        An `Evaluation` has a place for a confusion matrix, too; see `common.training.evaluate`.
        """
        return training.evaluate(model, *examples, self.loss)
