"""What a task is: models, data, what comes out, and by that training and evaluation.

Subclass `Task` for one's own. A task knows nothing about partitions, rounds or the wire.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from common import training
from common.errors import InputError
from common.tasks.inputs import Images, Inputs
from common.tasks.outputs import (
    Classes,
    NextSymbol,
    Outputs,
    check_tensor,
    classes_like,
    classes_of,
)
from common.training import Evaluation, Hyperparameter, Metrics, OnStep, TrainConfig

if TYPE_CHECKING:
    import torch

# What --partitioner may be; common/splits.py says what each does.
Scheme = Literal["iid", "dirichlet", "shards", "quantity", "natural", "none"]


class Examples(NamedTuple):
    """Tensors in memory: inputs of shape [n, ...] and targets of shape [n, ...].

    Inputs that are read when they are needed are an object with a length, whose items are tensors
    [m, ...] of a slice, or of a tensor of m indices.
    """

    inputs: torch.Tensor
    targets: torch.Tensor


class Task(ABC):
    """A learning problem. The smallest complete one sets `models` and defines `data`."""

    # The models by name; the first is the default. Each call makes a new one, whose weights
    # come from torch's global random state, which the server seeds. Arguments are those
    # hyperparameters that are named as its parameters are.
    models: ClassVar[Mapping[str, Callable[..., torch.nn.Module]]]
    # What --local-epochs, --batch-size, --lr and the like are when they are not given.
    defaults: ClassVar[TrainConfig] = TrainConfig()
    # What a person's picture or text becomes an input by.
    inputs: ClassVar[Inputs | None] = None
    # What comes out of a model: Classes, Map, Values or Labels. Where it isn't said, these are
    # classes, unless the task replaces `loss` and its targets are no classes.
    outputs: ClassVar[Outputs | None] = None
    # The names of the classes.
    classes: ClassVar[Sequence[str]] = ()
    # What --partitioner is when it is not given; None: dirichlet, or iid without classes.
    partitioner: ClassVar[Scheme | None] = None

    @abstractmethod
    def data(self, data_dir: Path, train: bool) -> Examples:
        """Return the training examples, or the held-out ones that the server evaluates on.

        Called once in a process. Targets that are class indices (shape [n]) are what the
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

    def build(self, name: str, hyperparameters: Mapping[str, Hyperparameter]) -> torch.nn.Module:
        """Return one of the models, new.

        Args:
            name: of the model.
            hyperparameters: those that are named as one of its parameters are given to it; a
                whole number as an int.

        Raises:
            KeyError: there is no such model.
        """
        model = self.models[name]
        try:
            parameters = inspect.signature(model).parameters.values()
        except ValueError:  # Of a class without one, such as torch.nn.Identity's base.
            return model()
        named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        given = {
            # On the wire, all numbers are float64.
            key: int(value) if isinstance(value, float) and value.is_integer() else value
            for key, value in hyperparameters.items()
            if key in named
        }
        return model(**given)

    @property
    def declared(self) -> Outputs | None:
        """What the task says of its outputs, with the names of `classes`; None: nothing."""
        if self.outputs is None or self.outputs.names or not self.classes:
            return self.outputs
        return replace(self.outputs, names=self.classes)

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the classes, if there are classes and they have names."""
        found = self.declared
        if found is None:
            return self.classes
        return found.names if isinstance(found, Classes) else ()

    def outputs_like(
        self, outputs: torch.Tensor, targets: torch.Tensor | None = None
    ) -> Outputs | None:
        """Return what a model's outputs are: as the task says, or else by their shape.

        Args:
            outputs: shape [n, ...].
            targets: of the same examples; None: not known.

        Returns:
            None: the task replaces `loss`, says nothing, and its targets are no classes.

        Raises:
            InputError: the model returns something else than one tensor.
        """
        if self.outputs is None and not self.classes and type(self).loss is not Task.loss:
            return None if targets is None else classes_like(outputs, targets)
        check_tensor(outputs)
        if self.outputs is not None:
            return self.declared
        symbols = None if isinstance(self.inputs, Images) else self.inputs
        if symbols is not None and outputs.ndim == 3 and outputs.shape[1] == len(symbols):
            return NextSymbol()
        return classes_of(outputs, self.classes)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch; that of `outputs` unless overridden.

        Classes have cross-entropy, labels binary cross-entropy, values the mean squared error.

        Raises:
            InputError: outputs or targets are not such as the task says.
        """
        found = self.outputs_like(outputs, targets) or classes_of(outputs)
        return found.loss(outputs, targets)

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
        """Return means over the examples: "loss", and what `outputs` are measured by.

        An `Evaluation` has a place for a confusion matrix, too; see `common.training.evaluate`.

        Raises:
            InputError: outputs or targets are not such as the task says.
        """
        return training.evaluate(model, *examples, self.loss, self.outputs_like)
