"""Prints the perplexity of a run's model on held-out text, beside what it has to beat.

That are a unigram and a bigram model of all training text in one place (scripts/ngrams.py).
"""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from scripts.cli import command_line, run_app
from scripts.ngrams import perplexities

app = command_line("perplexity")


@app.default
def perplexity(
    *,
    run_dir: Path,
    data_dir: Path | None = None,
    task: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Print the perplexities on held-out text of a model, of unigrams and of bigrams.

    Args:
        run_dir: The run directory of a text task, such as next_word or shakespeare.
        data_dir: Folder of the text, both parts of which are read; the run's own if not given.
        task: The run's task if it is your own: its code is run here.
        json: Print a JSON object.
    """
    found = perplexities(run_dir, data_dir, task)
    if json:
        print(json_format.dumps(found))
        return
    names = {"model": f"best model of {run_dir}", "bigram": "bigram (Kneser-Ney)"}
    print("Perplexity on held-out text (less is better):")
    for name, value in found.items():
        print(f"{value:8.2f}  {names.get(name, name)}")


if __name__ == "__main__":
    sys.exit(run_app(app))
