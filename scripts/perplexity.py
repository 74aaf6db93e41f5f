"""Prints the perplexity of a run's model on held-out text, beside what it has to beat.

That are a unigram and a bigram model of all training text in one place (scripts/ngrams.py).
"""

from __future__ import annotations

import json as json_format
import math
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from common.errors import InputError
from common.tasks import Examples, load_examples
from scripts.commands import run_app
from scripts.ngrams import Pairs, baselines
from scripts.trained import load_trained, text_task

app = App(
    name="./scripts/perplexity",
    help="Prints how well a run's model predicts held-out text, beside unigrams and bigrams.",
    version_flags=(),
    help_format="plaintext",
)


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


def perplexities(
    run_dir: Path, data_dir: Path | None = None, named: str | None = None
) -> dict[str, float]:
    """Return the held-out perplexity of a run's best model, of "unigram" and of "bigram".

    Raises:
        InputError: there is no run of a text task, or no text.
    """
    trained = load_trained(run_dir, task=named)
    task, model = text_task(trained), trained.model
    data_dir = data_dir or Path(trained.options.get("data_dir", "data"))
    train, held_out = (load_examples(task, data_dir, train=train) for train in (True, False))
    if len(train.inputs) < 2:
        raise InputError(f"--data-dir: {data_dir} has too little text to count words in")
    loss = task.evaluate(model, held_out).metrics["loss"]
    # Of one symbol, so that what comes out has one place.
    classes = model(held_out.inputs[:1, :1]).shape[1]
    return {"model": math.exp(loss)} | baselines(_pairs(train), _pairs(held_out), classes)


def _pairs(examples: Examples) -> Pairs:
    return Pairs(examples.inputs.numpy(), examples.targets.numpy())


if __name__ == "__main__":
    sys.exit(run_app(app))
