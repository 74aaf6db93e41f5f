"""The next word: what federated learning was invented for (Hard et al. 2018, arXiv 1811.03604).

The text is a folder of *.txt files in UTF-8: DATA_DIR/text if there is one, else DATA_DIR
itself. Each file in it is a client's text, and so is each sub-folder with all the files below
it. The last fifth of each file is held out.

Without --data-dir, which then names `data`, and without text there, the text is the topics of
Python's own help (pydoc_data.topics), in ten groups. They differ between versions of Python.
A folder that was named and holds no text is an error.

For another language or trade, let a task of your own have words of your own:

    VOCABULARY = Vocabulary(Path("words.txt").read_text().split(), buckets=128)

    class Notes(NextWord):
        models = {"lstm": lambda: WordLstm(VOCABULARY)}
        inputs = VOCABULARY
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from common.errors import DataError
from common.logs import get_logger
from common.tasks.inputs import Symbols
from common.tasks.text import Text, TextTask, split_in_time
from common.tasks.words import Vocabulary, bundled_words
from common.training import TrainConfig

log = get_logger()

# Where --data-dir points unless it is given.
_NOT_NAMED = Path("data")
_GROUPS = 10
_EMBEDDING, _UNITS = 96, 96
_VOCABULARY = Vocabulary(bundled_words(), buckets=128)


class WordLstm(nn.Module):
    """An LSTM of 96 units over embeddings of 96, and a liking for what was said just before.

    The embeddings' own way to the scores learns pairs of words, fast; the LSTM adds the rest.
    A word that came before in the sequence is likelier to come again; how much is learned for
    each word: the idea of a cache (Kuhn and De Mori 1990), with one weight a word.
    """

    def __init__(self, vocabulary: Vocabulary = _VOCABULARY) -> None:
        super().__init__()
        known, classes = len(vocabulary.symbols), len(vocabulary)
        # By Zipf's law the n-th word has a share of about 1 / 10n; so do the buckets' words.
        rank = torch.arange(classes).clamp(max=known - 1) + 3.0
        self.embedding = nn.Embedding(classes, _EMBEDDING)
        self.lstm = nn.LSTM(_EMBEDDING, _UNITS, batch_first=True)
        self.dropout = nn.Dropout(0.4)
        self.scores = nn.Linear(_EMBEDDING + _UNITS, classes)
        # As if one word in 200 were that one again: the rarer it is, the more that tells.
        self.again = nn.Parameter(torch.log1p(rank * 10 / 200))
        with torch.no_grad():
            self.scores.weight.mul_(0.1)
            self.scores.bias.copy_(-rank.log())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return scores of shape [n, classes, T] for tokens of shape [n, T]."""
        embedded = self.dropout(self.embedding(tokens))
        scores = self.scores(torch.cat([embedded, self.dropout(self.lstm(embedded)[0])], dim=2))
        # At each place, the tokens up to it; the first one stands for those to come.
        length = tokens.shape[1]
        there = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        past = torch.where(there, tokens.unsqueeze(1), tokens[:, :1, None])
        said = torch.zeros_like(scores).scatter_(2, past, 1.0)
        return torch.addcmul(scores, said, self.again).transpose(1, 2)


class NextWord(TextTask):
    """Sequences of 40 words of one owner, and the word after each of them."""

    models = {"lstm": WordLstm}
    defaults = TrainConfig(local_epochs=2, batch_size=4, learning_rate=4.0)
    length: ClassVar[int] = 40
    inputs: ClassVar[Symbols] = _VOCABULARY

    def texts(self, data_dir: Path) -> Iterator[Text]:
        """Yield the text of each file or sub-folder, by name; or the groups of Python's help."""
        for owner, found in _owned(data_dir).items():
            halves = [split_in_time(self.inputs.encode(text)) for text in found]
            train, held_out = (np.concatenate(part) for part in zip(*halves, strict=True))
            yield Text(owner, train, held_out)


def _owned(data_dir: Path) -> Mapping[str, Sequence[str]]:
    inner = data_dir / "text"
    folder = inner if inner.is_dir() else data_dir
    found = {entry.name: _read(entry) for entry in sorted(folder.glob("*"))}
    owned = {owner: texts for owner, texts in found.items() if texts}
    if owned:
        return owned
    if folder.absolute() == _NOT_NAMED.absolute():
        from pydoc_data.topics import topics

        _mention_help(data_dir)
        return grouped(topics, _GROUPS)
    raise DataError(
        f"--data-dir: no *.txt file in {folder} or a folder of it; put each client's text there, "
        "a file or a sub-folder each"
    )


@cache
def _mention_help(data_dir: Path) -> None:
    """Say it once, though text is read for each part of it."""
    log.info("no text of one's own: this is the text of Python's help", data_dir=str(data_dir))


def _read(entry: Path) -> list[str]:
    """Return the texts of a file, or of the files below a folder."""
    paths = sorted(entry.rglob("*.txt")) if entry.is_dir() else [entry]
    try:
        return [path.read_text(encoding="utf-8") for path in paths if path.suffix == ".txt"]
    except (OSError, UnicodeError) as error:
        raise DataError(f"--data-dir: can't read text in UTF-8 from {entry}: {error}") from error


def grouped(topics: Mapping[str, str], count: int) -> dict[str, list[str]]:
    """Return topics in groups of similar size: the largest first, each to the smallest group.

    A paragraph that several topics have stays only with the first of them by name, or the
    held-out text of one would be in the training text of another.
    """
    seen: set[str] = set()
    texts: dict[str, str] = {}
    for topic in sorted(topics):
        own = [part for part in topics[topic].split("\n\n") if part not in seen]
        seen.update(own)
        texts[topic] = "\n\n".join(own)
    groups: list[list[str]] = [[] for _ in range(count)]
    for text in sorted(texts.values(), key=len, reverse=True):
        min(groups, key=lambda group: sum(map(len, group))).append(text)
    return {f"help-{number}": group for number, group in enumerate(groups)}
