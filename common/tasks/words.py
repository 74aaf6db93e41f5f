"""Words as numbers: a vocabulary that is fixed before anyone trains, and buckets for the rest.

No client's text goes into the vocabulary, so none has to be shown to build one. Words outside
it share a number of buckets by a hash that is the same everywhere; a model still sees which
bucket a word is in, but none is a word to suggest.

A text is lower-cased words, which may hold apostrophes, and the punctuation that ends a word
(the last mark of several). All else, such as digits, underscores and brackets, parts words:

>>> words("It's 3 o'clock; call x.foo_bar(y)...")
["it's", "o'clock", ';', 'call', 'x', 'foo', 'bar', 'y', '.']

`vocabulary.txt` holds the commonest words of the English text that every Python carries, most
frequent first: `python -m scripts.count_words` counts them.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|[.,;:!?](?![\w.,;:!?=])")


def words(text: str) -> list[str]:
    """Return the words and the punctuation of a text."""
    return _WORD.findall(text.lower().replace("’", "'"))


def bundled_words() -> list[str]:
    """Return the words of vocabulary.txt."""
    return Path(__file__).with_name("vocabulary.txt").read_text(encoding="utf-8").split()


class Vocabulary:
    """Numbers its words from 0 in their order, and after them the buckets."""

    def __init__(self, known: Sequence[str], buckets: int) -> None:
        self.symbols: Sequence[str] = list(known)
        self.buckets = buckets
        self._numbers = {word: number for number, word in enumerate(self.symbols)}

    def __len__(self) -> int:
        return len(self.symbols) + self.buckets

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the number of each word of a text."""
        return np.array([self._number(word) for word in words(text)], np.int64)

    def _number(self, word: str) -> int:
        number = self._numbers.get(word)
        if number is None:
            return len(self.symbols) + crc32(word.encode()) % self.buckets
        return number
