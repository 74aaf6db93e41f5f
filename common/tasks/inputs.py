"""What a task's inputs are made of, where a person has a picture or a text.

Needs no torch, so that a model which has left it is fed by the same code. Knows nothing about
models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.tasks.words import Vocabulary

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Images:
    """Pictures, as values of shape [channels, height, width] that are standardised.

    Args:
        height: in pixels.
        width: in pixels.
        mean: of each channel's values, which are from 0 to 1; one is grey, three are RGB.
        std: the standard deviation of each channel's values.
        dark: the background is dark, as MNIST's is: a picture with a light border is inverted.
    """

    height: int
    width: int
    mean: Sequence[float]
    std: Sequence[float]
    dark: bool = False

    def encode(self, picture: Image) -> NDArray[np.float32]:
        """Return a picture's values, resized; what is transparent is white."""
        from PIL import Image

        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        opaque = Image.alpha_composite(white, picture).convert(
            "L" if len(self.mean) == 1 else "RGB"
        )
        small = opaque.resize((self.width, self.height), Image.Resampling.BOX)
        values = np.asarray(small, np.float32).reshape(self.height, self.width, -1) / 255
        border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
        if self.dark and border.mean() > 0.5:
            values = 1 - values
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1))

    def decode(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return an example's values as a picture's, of shape [height, width, channels]."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        plain = values.transpose(1, 2, 0) * std + mean
        return (plain.clip(0, 1) * 255).round().astype(np.uint8)


class Characters:
    """Numbers the characters of an alphabet from 0, and all others after them, as one."""

    def __init__(self, alphabet: str) -> None:
        self.symbols: Sequence[str] = alphabet
        # By code point; the last is that of all characters that are not in the alphabet.
        self._classes = np.full(max(map(ord, alphabet)) + 2, len(alphabet))
        self._classes[[ord(character) for character in alphabet]] = np.arange(len(alphabet))

    def __len__(self) -> int:
        return len(self.symbols) + 1

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the class of each character."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        return self._classes[np.minimum(points, len(self._classes) - 1)]


Symbols = Characters | Vocabulary
Inputs = Images | Symbols


def describe(inputs: Inputs) -> dict[str, Any]:
    """Return what `load` makes the same inputs of, as plain JSON."""
    match inputs:
        case Images():
            return {"kind": "image", **asdict(inputs)}
        case Characters():
            return {"kind": "characters", "alphabet": inputs.symbols}
        case Vocabulary():
            return {"kind": "words", "words": inputs.symbols, "buckets": inputs.buckets}


def load(described: Mapping[str, Any]) -> Inputs:
    """Return what was described.

    Raises:
        ValueError: it is no description of inputs.
    """
    fields = {name: value for name, value in described.items() if name != "kind"}
    try:
        match described.get("kind"):
            case "image":
                return Images(**fields)
            case "characters":
                return Characters(**fields)
            case "words":
                return Vocabulary(fields["words"], fields["buckets"])
    except (TypeError, KeyError) as error:
        raise ValueError(f"no description of inputs: {error}") from error
    raise ValueError(f"no description of inputs: kind {described.get('kind')!r}")
