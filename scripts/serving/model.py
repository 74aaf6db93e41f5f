"""A model's answers to pictures, texts and arrays: what its outputs mean.

Needs no torch, and pillow only for pictures. Knows nothing about files, HTTP or command lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.tasks.inputs import Images, Inputs, Symbols
from common.tasks.outputs import Answers, Classes, Map, Outputs

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Model:
    """Scores, and what is needed to ask for them.

    Args:
        scores: what the model gives for a batch of examples, shape [n, ...]; of text
            [n, classes, T], of the token after each place, which depend on no later place.
        dtype: of an example.
        outputs: what the scores are.
        shape: of an example; a name where a size varies, None where it isn't known.
        inputs: how a picture or a text becomes an example, if that is known.
        length: of text, the most tokens that are fed at once.
    """

    scores: Callable[[Array], Array]
    dtype: str
    outputs: Outputs
    shape: Sequence[int | str] | None = None
    inputs: Inputs | None = None
    length: int | None = None

    @property
    def takes(self) -> Literal["pictures", "text", "arrays"]:
        """What it takes, besides arrays."""
        if self.inputs is None:
            return "arrays"
        return "pictures" if isinstance(self.inputs, Images) else "text"

    @property
    def symbols(self) -> Symbols | None:
        """What its texts are made of, if it takes any."""
        return None if isinstance(self.inputs, Images) else self.inputs

    @property
    def dimensions(self) -> int | None:
        """Of an example; None: not known."""
        if self.symbols is not None:
            return 1
        return None if self.shape is None else len(self.shape)

    def of_picture(self, picture: Image) -> Array:
        """Return a picture as an example.

        Raises:
            InputError: the model takes none.
        """
        if not isinstance(self.inputs, Images):
            raise InputError(f"this model takes {self.takes}, not pictures")
        return self.inputs.encode(picture)

    def of_text(self, text: str) -> Array:
        """Return a text as an example; of a long one, its end.

        Raises:
            InputError: the model takes none, or there is nothing in it.
        """
        if self.symbols is None:
            raise InputError(f"this model takes {self.takes}, not text")
        tokens = self.symbols.encode(text)[-(self.length or 0) :]
        if not len(tokens):
            raise InputError(f"there is nothing to go on in the text {text[:80]!r}")
        return tokens

    def of_array(self, values: object) -> Array:
        """Return one example's values, an array or nested lists, as an example.

        Raises:
            InputError: their shape or their type is another than the model's, they are not
                finite, or one is no token.
        """
        try:
            found = np.asarray(values)
        except (ValueError, OverflowError) as error:
            raise InputError("an input's lists are of different lengths") from error
        whole = np.issubdtype(self.dtype, np.integer)
        if found.dtype.kind not in ("iu" if whole else "iuf"):
            raise InputError(f"an input's values must be numbers, of type {self.dtype}")
        self._check_shape(found.shape)
        if self.symbols is not None and not 0 <= found.min() <= found.max() < len(self.symbols):
            raise InputError(f"an input's tokens must be from 0 to {len(self.symbols) - 1}")
        with np.errstate(over="ignore"):
            found = found.astype(self.dtype)
        if not np.isfinite(found).all():
            raise InputError(f"an input's values must be finite, in {self.dtype}")
        return found

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if self.symbols is not None:
            fits = len(shape) == 1 and 1 <= shape[0] <= (self.length or 0)
            wanted = f"[1 to {self.length}]"
        elif self.shape is None:
            return
        else:
            fits = len(shape) == len(self.shape) and all(
                size == wanted if isinstance(wanted, int) else size > 0
                for size, wanted in zip(shape, self.shape, strict=True)
            )
            wanted = f"[{', '.join(map(str, self.shape))}]"
        if not fits:
            raise InputError(f"an input's shape must be {wanted}, not {list(shape)}")

    def predict(self, examples: Sequence[Array]) -> Array:
        """Return what the answers to examples are made of, shape [n, ...]; see `answers`.

        Raises:
            InputError: the model can't be run on one of them, or what it gives is not what it
                should be.
        """
        if self.symbols is not None:
            scores = self._after(examples)
        elif len({example.shape for example in examples}) == 1:
            scores = self.scores(np.stack(examples))
        else:
            scores = np.concatenate([self.scores(example[None]) for example in examples])
        if self.symbols is None:
            self._check_scores(scores)
        if not np.isfinite(scores).all():
            raise InputError(
                "the model's outputs for an input are not finite: its values are too far"
            )
        return self.outputs.predict(scores)

    def _check_scores(self, scores: Array) -> None:
        try:
            self.outputs.check(scores.shape)
        except InputError as error:
            if self.shape is not None:
                raise
            raise InputError(f"{error}; or the input is of another shape than it takes") from error

    def _after(self, examples: Sequence[Array]) -> Array:
        """Return the scores after each text; shorter ones are filled up, which they don't see."""
        sizes = [len(example) for example in examples]
        fixed = self.shape[0] if self.shape else None
        tokens = np.zeros((len(sizes), fixed if isinstance(fixed, int) else max(sizes)), self.dtype)
        for row, example in zip(tokens, examples, strict=True):
            row[: len(example)] = example
        scores: Array = self.scores(tokens)[np.arange(len(sizes)), :, np.array(sizes) - 1]
        return scores

    def answers(self, predicted: Array, count: int) -> Answers:
        """Return the answers to one example, of its row of `predict`.

        Of text, without the classes that stand for no symbol.

        Args:
            predicted: of the example.
            count: how many, where the likeliest come first.
        """
        if self.symbols is None:
            return self.outputs.answers(predicted, count)
        names = self.symbols.symbols
        return Classes(names).answers(predicted[: len(names)], count)

    def places(self, predicted: Array) -> list[Any] | None:
        """Return the class at each place of one example, nested lists; None if it is no map."""
        if not isinstance(self.outputs, Map):
            return None
        found: list[Any] = self.outputs.places(predicted).tolist()
        return found
