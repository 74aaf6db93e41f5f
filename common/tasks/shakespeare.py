"""The next character of Shakespeare: McMahan et al. 2017 (arXiv 1602.05629), section 3.

A client is a speaking role of a play. Training is on the first 80 % of its lines, the
server's held-out text is the rest. Roles of fewer than 81 characters there have no example.

The data is the LEAF benchmark's (Caldas et al. 2018, arXiv 1812.01097; TensorFlow Federated's
`shakespeare` is the same), made by its data/shakespeare/preprocess from Project Gutenberg's
complete works. DATA_DIR/shakespeare/by_role.json.gz is its all_data.json before sampling,
compressed: an object whose "user_data" holds for each role, by a name such as
"HAMLET__OPHELIA", an object whose "raw" is all that the role says, lines ended by newlines.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import ClassVar

import torch
from torch import nn

from common.errors import DataError
from common.tasks.inputs import Characters
from common.tasks.text import Text, TextTask, split_in_time
from common.training import TrainConfig

# The data's own. A character that is not among them is the one class after these.
_ALPHABET = "\n !$&',-.234568:;?[]" + ascii_uppercase + ascii_lowercase
_LENGTH = 80


class CharacterLstm(nn.Module):
    """The paper's: an embedding of 8, two LSTM layers of 256 units, scores per character.

    818,065 parameters for our 73 classes. The paper has 866,578; it doesn't state its alphabet.
    """

    def __init__(self) -> None:
        super().__init__()
        classes = len(_ALPHABET) + 1
        self.embedding = nn.Embedding(classes, 8)
        self.lstm = nn.LSTM(8, 256, num_layers=2, batch_first=True)
        self.scores = nn.Linear(256, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return scores of shape [n, classes, T] for tokens of shape [n, T]."""
        found: torch.Tensor = self.scores(self.lstm(self.embedding(tokens))[0])
        return found.transpose(1, 2)


class Shakespeare(TextTask):
    """Sequences of 80 characters of one role, and the character after each of them."""

    models = {"lstm": CharacterLstm}
    defaults = TrainConfig(local_epochs=1, batch_size=10, learning_rate=2.0)
    length: ClassVar[int] = _LENGTH
    inputs = Characters(_ALPHABET)

    def texts(self, data_dir: Path) -> Iterator[Text]:
        """Yield the roles, by name."""
        for role, lines in sorted(_read(data_dir).items()):
            train, held_out = split_in_time(lines.splitlines(keepends=True))
            yield Text(role, *(self.inputs.encode("".join(part)) for part in (train, held_out)))


def _read(data_dir: Path) -> dict[str, str]:
    """Return what each role says."""
    path = data_dir / "shakespeare" / "by_role.json.gz"
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            roles = json.load(file)["user_data"]
        return {str(role): str(data["raw"]) for role, data in roles.items()}
    # What gzip and json raise on files that are not what their names say.
    except (
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"--data-dir: no readable {path} ({reason}); it is the all_data.json that LEAF's "
            "data/shakespeare/preprocess makes (github.com/TalwalkarLab/leaf), compressed by gzip"
        ) from error
