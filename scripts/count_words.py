"""Prints the commonest words of English text that every Python carries, most frequent first.

That is how common/tasks/vocabulary.txt was made, with Python 3.11:
`python -m scripts.count_words > common/tasks/vocabulary.txt`. The text is the topics of
Python's help and the docstrings of the standard library.
"""

import ast
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from common.tasks.words import words

_SIZE = 3000
_OTHERS = {"test", "tests", "site-packages", "dist-packages", "idlelib", "pydoc_data"}


def main() -> None:
    """Count and print."""
    counts: Counter[str] = Counter()
    for text in (*topics.values(), *_docstrings(Path(sysconfig.get_path("stdlib")))):
        counts.update(words(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    print("\n".join(ranked[:_SIZE]))


def _docstrings(library: Path) -> Iterator[str]:
    for path in sorted(library.rglob("*.py")):
        if _OTHERS.isdisjoint(path.relative_to(library).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(
                    node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
                ):
                    yield ast.get_docstring(node) or ""


if __name__ == "__main__":
    main()
