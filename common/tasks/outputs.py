"""What a task's outputs are: how they become an answer, what they are trained and measured by.

Answering needs no torch, so that a model which has left it is read by the same code. Knows nothing
about models.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, InputError

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]
# A dimension that varies is its name.
Shape = Sequence[int | str]
Metrics = dict[str, float]

# That probabilities may sum to something else than 1.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Answer:
    """A class, or the symbol that comes next, and how likely it is."""

    label: str
    probability: float

    @property
    def said(self) -> str:
        """Return what stands beside the label."""
        return f"{self.probability:.2%}"


@dataclass(frozen=True)
class Value:
    """A number, and its unit if it has one."""

    label: str
    value: float
    unit: str = ""

    @property
    def said(self) -> str:
        """Return what stands beside the label."""
        return f"{self.value:.6g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Label:
    """A label, how likely it is, and whether that is likely enough."""

    label: str
    probability: float
    holds: bool

    @property
    def said(self) -> str:
        """Return what stands beside the label."""
        return f"{self.probability:.2%} {'yes' if self.holds else 'no'}"


@dataclass(frozen=True)
class Share:
    """A class, and the share of a map's places that it has."""

    label: str
    share: float

    @property
    def said(self) -> str:
        """Return what stands beside the label."""
        return f"{self.share:.2%}"


Answers = Sequence[Answer | Value | Label | Share]


@dataclass(frozen=True)
class Outputs(ABC):
    """One tensor of shape [n, ...] for n examples.

    Args:
        names: of the classes, numbers or labels; their places from 0 if there are none.
    """

    names: Sequence[str] = ()

    kind: ClassVar[str]
    # What a model gives for them, and what is answered.
    raw: ClassVar[str]
    answered: ClassVar[str]

    @abstractmethod
    def check(self, shape: Shape) -> None:
        """Check that outputs of a shape, [n, ...], are such outputs.

        Raises:
            InputError: they are not.
        """

    @abstractmethod
    def predict(self, outputs: Array) -> Array:
        """Return what the answers are made of, for outputs of shape [n, ...]: float64."""

    @abstractmethod
    def answers(self, predicted: Array, count: int) -> Answers:
        """Return the answers to one example, of what `predict` returned for it.

        Args:
            predicted: of one example.
            count: how many, where the likeliest come first.
        """

    @abstractmethod
    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch.

        Raises:
            InputError: outputs or targets are not such as these.
        """

    @abstractmethod
    def measure(self, outputs: torch.Tensor, targets: torch.Tensor) -> Metrics:
        """Return a batch's means, beside the loss, over its examples.

        Raises:
            InputError: outputs or targets are not such as these.
        """

    @property
    def said(self) -> str:
        """Return in a line what they are."""
        return self.raw + (f": {', '.join(self.names)}" if self.names else "")

    def name(self, place: int) -> str:
        """Return what a class, number or label is called."""
        return self.names[place] if self.names else str(place)

    def _wrong(self, shape: Shape, wanted: str) -> InputError:
        found = ", ".join(map(str, ["n", *shape[1:]]))
        return InputError(
            f"the model's outputs are of shape [{found}], not {wanted}; set the task's `outputs` "
            "to what they are, or change the model"
        )

    def _check_names(self, shape: Shape, what: str) -> None:
        if self.names and shape[1] != len(self.names):
            raise self._wrong(shape, f"{len(self.names)} {what}, one for each name")


@dataclass(frozen=True)
class Classes(Outputs):
    """One class of several: scores of shape [n, classes], targets of shape [n], from 0."""

    kind = "classes"
    raw = "scores of classes"
    answered = "probability"

    def check(self, shape: Shape) -> None:
        """Check that outputs are scores of at least two classes.

        Raises:
            InputError: they are not.
        """
        if len(shape) != 2 or shape[1] == 1:
            raise self._wrong(shape, "[n, classes] of at least two classes")
        self._check_names(shape, "scores")

    def predict(self, outputs: Array) -> Array:
        """Return probabilities: the softmax of the scores."""
        scores = outputs.astype(np.float64)
        powers = np.exp(scores - scores.max(1, keepdims=True))
        found: Array = powers / powers.sum(1, keepdims=True)
        return found

    def answers(self, predicted: Array, count: int) -> Answers:
        """Return the likeliest classes, the first being the likeliest."""
        order = np.argsort(-predicted, kind="stable")[:count]
        return [Answer(self.name(int(place)), float(predicted[place])) for place in order]

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy.

        Raises:
            InputError: outputs are no scores of classes, or targets no classes.
        """
        from torch.nn.functional import cross_entropy

        self._classes_of(outputs, targets)
        return cross_entropy(outputs, targets)

    def measure(self, outputs: torch.Tensor, targets: torch.Tensor) -> Metrics:
        """Return "accuracy", the share of the examples, or of all places, that are right.

        Raises:
            InputError: outputs are no scores of classes, or targets no classes.
        """
        found = self._classes_of(outputs, targets)
        if found is not targets and not targets.sum(1).sub(1).abs().lt(_ROUNDING).all():
            raise self._no_classes(targets, outputs)
        return {"accuracy": (outputs.argmax(1) == found).double().mean().item()}

    def _classes_of(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.check(outputs.shape)
        if targets.is_floating_point() and targets.shape == outputs.shape:
            # Probabilities of classes.
            return targets.argmax(1)
        if targets.is_floating_point() or targets.shape != _places(outputs):
            raise self._no_classes(targets, outputs)
        return targets

    def _no_classes(self, targets: torch.Tensor, outputs: torch.Tensor) -> InputError:
        kind = str(targets.dtype).removeprefix("torch.")
        return InputError(
            f"the targets are of dtype {kind} and shape {list(targets.shape)}, not classes "
            f"(whole numbers of shape {list(_places(outputs))}) nor their "
            "probabilities; set the task's `outputs` to what they are, e.g. Values() or Labels()"
        )


@dataclass(frozen=True)
class Map(Classes):
    """A class at each place, such as a pixel: scores [n, classes, ...], targets [n, ...]."""

    kind = "map"
    raw = "scores of classes at each place"
    answered = "share of the places"

    def check(self, shape: Shape) -> None:
        """Check that outputs are scores of at least two classes at each place.

        Raises:
            InputError: they are not.
        """
        if len(shape) < 3 or shape[1] == 1:
            raise self._wrong(shape, "[n, classes, ...] of at least two classes")
        self._check_names(shape, "scores")

    def answers(self, predicted: Array, count: int) -> Answers:
        """Return the classes that most places have, those of the most first."""
        shares = np.bincount(self.places(predicted).reshape(-1)) / predicted[0].size
        order = [int(place) for place in np.argsort(-shares, kind="stable") if shares[place]]
        return [Share(self.name(place), float(shares[place])) for place in order[:count]]

    def places(self, predicted: Array) -> NDArray[np.int64]:
        """Return the likeliest class at each place of one example."""
        found: NDArray[np.int64] = predicted.argmax(0)
        return found


@dataclass(frozen=True)
class NextSymbol(Classes):
    """The symbol after each place of a text: scores [n, symbols, places], targets [n, places]."""

    kind = "next_symbol"
    raw = "scores of the symbol after each place"

    def check(self, shape: Shape) -> None:
        """Check that outputs are scores at each place.

        Raises:
            InputError: they are not.
        """
        if len(shape) != 3:
            raise self._wrong(shape, "[n, symbols, places], as of a text")


@dataclass(frozen=True)
class Values(Outputs):
    """Numbers as they come out: one or several an example, as many as it has targets.

    Outputs of shape [n] and targets of shape [n, 1], or the other way round, are one number each.

    Args:
        names: of the numbers.
        units: of the numbers; empty if they have none.
    """

    units: Sequence[str] = ()

    kind = "values"
    raw = "values"
    answered = "value"

    @property
    def said(self) -> str:
        """Return in a line what they are."""
        if not self.names or not any(self.units):
            return super().said
        named = zip(self.names, self.units, strict=True)
        parts = [f"{name} [{unit}]" if unit else name for name, unit in named]
        return f"{self.raw}: {', '.join(parts)}"

    def check(self, shape: Shape) -> None:
        """Check that there is a number for each name and for each unit.

        Raises:
            InputError: there is not.
        """
        sizes = [size for size in shape[1:] if isinstance(size, int)]
        known = len(sizes) == len(shape) - 1
        for what in (self.names, self.units):
            if what and known and math.prod(sizes) != len(what):
                raise self._wrong(shape, f"{len(what)} numbers an example")

    def predict(self, outputs: Array) -> Array:
        """Return the numbers."""
        return outputs.astype(np.float64)

    def answers(self, predicted: Array, count: int) -> Answers:
        """Return the numbers, all and in their order."""
        places = np.ndindex(predicted.shape)
        numbers = predicted.reshape(-1).tolist()
        return [
            Value(
                self.names[index]
                if self.names
                else ",".join(map(str, place))
                if len(numbers) > 1
                else "value",
                number,
                self.units[index] if self.units else "",
            )
            for index, (place, number) in enumerate(zip(places, numbers, strict=True))
        ]

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error.

        Raises:
            InputError: there are not as many outputs as targets.
        """
        from torch.nn.functional import mse_loss

        return mse_loss(outputs, self._fitting(outputs, targets))

    def measure(self, outputs: torch.Tensor, targets: torch.Tensor) -> Metrics:
        """Return "mean_squared_error" and "mean_absolute_error" over all numbers.

        Raises:
            InputError: there are not as many outputs as targets.
        """
        errors = outputs.double() - self._fitting(outputs, targets).double()
        return {
            "mean_squared_error": errors.square().mean().item(),
            "mean_absolute_error": errors.abs().mean().item(),
        }

    def _fitting(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return targets in the outputs' shape and dtype."""
        self.check(outputs.shape)
        shapes = [[size for size in tensor.shape[1:] if size != 1] for tensor in (outputs, targets)]
        if len(outputs) != len(targets) or shapes[0] != shapes[1]:
            raise InputError(
                f"the model's outputs are of shape {list(outputs.shape)} and the targets of shape "
                f"{list(targets.shape)}; there must be a number for each target"
            )
        return targets.reshape(outputs.shape).to(outputs.dtype)


@dataclass(frozen=True)
class Labels(Outputs):
    """Labels of which any number hold: scores of shape [n, labels], targets of 0 and 1.

    Args:
        names: of the labels.
        threshold: a label holds from this probability on.
    """

    threshold: float = 0.5

    kind = "labels"
    raw = "scores of labels"
    answered = "probability"

    def check(self, shape: Shape) -> None:
        """Check that outputs are a score for each label.

        Raises:
            InputError: they are not.
        """
        if len(shape) != 2:
            raise self._wrong(shape, "[n, labels]")
        self._check_names(shape, "scores")

    def predict(self, outputs: Array) -> Array:
        """Return probabilities: the sigmoid of each score."""
        found: Array = (1 + np.tanh(outputs.astype(np.float64) / 2)) / 2
        return found

    def answers(self, predicted: Array, count: int) -> Answers:
        """Return the labels that hold, and others up to the count, the likeliest first."""
        order = np.argsort(-predicted, kind="stable")
        holding = int((predicted >= self.threshold).sum())
        return [
            Label(self.name(int(place)), float(predicted[place]), rank < holding)
            for rank, place in enumerate(order[: max(count, holding)])
        ]

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean binary cross-entropy.

        Raises:
            InputError: targets are not of the outputs' shape.
        """
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(outputs, self._fitting(outputs, targets))

    def measure(self, outputs: torch.Tensor, targets: torch.Tensor) -> Metrics:
        """Return "label_accuracy" and "exact_match".

        The first is the share of all labels that are right, the second that of the examples all
        of whose labels are.

        Raises:
            InputError: targets are not of the outputs' shape.
        """
        wanted = self._fitting(outputs, targets) > 0.5
        right = (outputs.sigmoid() >= self.threshold) == wanted
        return {
            "label_accuracy": right.double().mean().item(),
            "exact_match": right.all(1).double().mean().item(),
        }

    def _fitting(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.check(outputs.shape)
        if outputs.shape != targets.shape:
            raise InputError(
                f"the model's outputs are of shape {list(outputs.shape)} and the targets of shape "
                f"{list(targets.shape)}; there must be a 0 or a 1 for each label"
            )
        return targets.to(outputs.dtype)


def check_labels(targets: torch.Tensor) -> None:
    """Check that the targets of `Labels` say of each whether it holds.

    Raises:
        DataError: one is neither 0 nor 1; the loss would have no least value.
    """
    wrong = targets[(targets != 0) & (targets != 1)]
    if len(wrong):
        raise DataError(
            f"--task: the targets of Labels must be 0 or 1, not {wrong[0].item():g}; mend what "
            "the task's data() returns"
        )


_KINDS: dict[str, type[Outputs]] = {
    found.kind: found for found in (Classes, Map, NextSymbol, Values, Labels)
}


def describe(outputs: Outputs) -> dict[str, Any]:
    """Return what `load` makes the same outputs of, as plain JSON."""
    fields = {
        name: list(value) if isinstance(value, Sequence) else value
        for name, value in asdict(outputs).items()
    }
    return {"kind": outputs.kind, **fields}


def load(described: Mapping[str, Any]) -> Outputs:
    """Return what was described.

    Raises:
        ValueError: it is no description of outputs.
    """
    fields = {name: value for name, value in described.items() if name != "kind"}
    try:
        found = _KINDS[described["kind"]](**fields)
        texts = [*found.names, *(found.units if isinstance(found, Values) else ())]
        numbers = [found.threshold] if isinstance(found, Labels) else []
    except (KeyError, TypeError) as error:
        raise ValueError(f"no description of outputs: {error}") from error
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("no description of outputs: a class, number or label has no name")
    if not all(isinstance(number, int | float) for number in numbers):
        raise ValueError("no description of outputs: the threshold is no number")
    return found


def check_tensor(outputs: object) -> None:
    """Check that a model returned one tensor of shape [n, ...].

    Raises:
        InputError: it did not.
    """
    if not _is_tensor(outputs):
        raise InputError(
            f"the model returns {type(outputs).__name__}, not one tensor with a row for each "
            "example; change the model, or replace the task's `loss` and `evaluate`"
        )


def _is_tensor(outputs: object) -> bool:
    import torch

    return isinstance(outputs, torch.Tensor) and outputs.ndim > 0


def classes_of(outputs: torch.Tensor, names: Sequence[str] = ()) -> Outputs:
    """Return the classes of scores [n, classes, ...]: at each place where there are several."""
    return (Map if outputs.ndim > 2 else Classes)(names)


def classes_like(outputs: torch.Tensor, targets: torch.Tensor) -> Outputs | None:
    """Return classes, if outputs may be scores of them, and targets those classes; else None."""
    if not _is_tensor(outputs) or outputs.ndim < 2 or outputs.shape[1] < 2:
        return None
    fits = targets.shape == _places(outputs) and not targets.is_floating_point()
    return classes_of(outputs) if fits else None


def _places(outputs: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of the classes of scores."""
    return outputs.shape[:1] + outputs.shape[2:]
