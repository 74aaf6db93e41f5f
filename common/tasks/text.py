"""What the text tasks share: sequences out of each owner's text, their evaluation, suggestions.

An example is a sequence of tokens; its targets are the token after each of them. The last
fifth of each text is held out (a split in time, as in McMahan et al. 2017, section 3).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from common.errors import DataError, InputError
from common.tasks.base import Examples, Scheme, Task
from common.tasks.inputs import Symbols
from common.tasks.outputs import NextSymbol, Outputs
from common.training import Evaluation

Tokens = NDArray[np.int64]
T = TypeVar("T", list[str], Tokens)

# Scores are large: sequences × classes × tokens.
_EVALUATION_BATCH_SIZE = 32
_TOP = 3


class Text(NamedTuple):
    """The tokens of one owner, from 0, as the model's classes are numbered."""

    owner: str
    train: Tokens
    held_out: Tokens


class TextTask(Task):
    """Predicts the next token at each of a sequence's places.

    Models take tokens of shape [n, T] and return scores of shape [n, classes, T].
    """

    # An owner's examples stay together.
    partitioner: ClassVar[Scheme | None] = "natural"
    # Tokens in a sequence.
    length: ClassVar[int]

    outputs: ClassVar[Outputs | None] = NextSymbol()
    # What the first classes stand for; those after them are seen but never suggested.
    inputs: ClassVar[Symbols]

    @abstractmethod
    def texts(self, data_dir: Path) -> Iterator[Text]:
        """Yield the text of each owner, in an order that is always the same.

        Raises:
            DataError: there is none, or it can't be read.
        """

    def data(self, data_dir: Path, train: bool) -> Examples:
        """Return the sequences of the training text or of the held-out text."""
        pieces = [
            sequences(text.train if train else text.held_out, self.length)
            for text in self.texts(data_dir)
        ]
        found = torch.cat(pieces)
        if not len(found):
            part = "training text" if train else "held-out text (the last fifth)"
            raise DataError(
                f"--data-dir: no owner's {part} in {data_dir} has the {self.length + 1} tokens "
                "of a sequence; more text is needed"
            )
        return Examples(found[:, :-1].contiguous(), found[:, 1:].contiguous())

    def owners(self, data_dir: Path) -> Sequence[str]:
        """Return whose each training example is."""
        found: list[str] = []
        for text in self.texts(data_dir):
            found += [text.owner] * len(sequences(text.train, self.length))
        return found

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy over all places."""
        # Twice as fast as cross_entropy along the middle of three dimensions.
        return cross_entropy(outputs.transpose(1, 2).flatten(0, 1), targets.flatten())

    def evaluate(self, model: torch.nn.Module, examples: Examples) -> Evaluation:
        """Return means over all places: "loss", "accuracy", and "top3_accuracy".

        The last is the share of the places where the true token is among the three likeliest.
        """
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        with torch.inference_mode():
            for x, y in zip(
                *(torch.split(part, _EVALUATION_BATCH_SIZE) for part in examples), strict=True
            ):
                outputs = model(x)
                hits = outputs.topk(_TOP, dim=1).indices == y.unsqueeze(1)
                means = (
                    self.loss(outputs, y),
                    hits[:, 0].float().mean(),
                    hits.sum(1).float().mean(),
                )
                sums += torch.stack(means).cpu().double() * len(y)
        loss, accuracy, top3 = (sums / len(examples.inputs)).tolist()
        return Evaluation({"loss": loss, "accuracy": accuracy, "top3_accuracy": top3})

    def suggest(self, model: torch.nn.Module, text: str, count: int) -> list[tuple[str, float]]:
        """Return the likeliest symbols after a text, with their probabilities.

        Raises:
            InputError: the text is empty.
        """
        symbols = self.inputs.symbols
        tokens = self.inputs.encode(text)[-self.length :]
        if not len(tokens):
            raise InputError(f"PROMPT: there is nothing to go on in {text!r}")
        model.eval()
        with torch.inference_mode():
            scores = model(torch.from_numpy(tokens).unsqueeze(0))[0, :, -1]
        likeliest = scores.softmax(0)[: len(symbols)].topk(min(count, len(symbols)))
        return [
            (symbols[index], value)
            for value, index in zip(*(part.tolist() for part in likeliest), strict=True)
        ]


def sequences(tokens: Tokens, length: int) -> torch.Tensor:
    """Return pieces of `length` tokens and the one after them, shape [n, length + 1].

    A piece begins with the last token of the one before it. What is left at the end and
    fills none is dropped.

    >>> sequences(np.array([0, 1, 2, 3, 4, 5]), 2).tolist()
    [[0, 1, 2], [2, 3, 4]]
    """
    count = max(0, len(tokens) - 1) // length
    if not count:
        return torch.empty(0, length + 1, dtype=torch.int64)
    return torch.from_numpy(tokens[: count * length + 1]).unfold(0, length + 1, length)


def split_in_time(parts: T) -> tuple[T, T]:
    """Return the first four fifths, rounded down, and the rest."""
    count = len(parts) * 4 // 5
    return parts[:count], parts[count:]
