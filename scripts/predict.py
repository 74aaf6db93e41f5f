"""Prints what a run's model thinks comes next: words after a text, or characters.

Reads the run directory only.
"""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from common.errors import InputError
from scripts.commands import run_app
from scripts.trained import TrainedRun, load_trained, text_task

app = App(
    name="./scripts/predict",
    help="Prints what a run's model thinks comes next.",
    version_flags=(),
    help_format="plaintext",
)


@app.default
def predict(
    prompt: str | None = None,
    /,
    *,
    run_dir: Path,
    top: Annotated[int, Parameter(validator=Number(gte=1))] = 3,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Print what a run's model thinks comes next.

    Args:
        prompt: The text so far; if not given, each line of the standard input is one.
        run_dir: The run directory of a text task, such as next_word or shakespeare.
        top: How many to print, the likeliest first.
        json: Print JSON, one object a prompt.
    """
    trained = load_trained(run_dir)
    if prompt is not None:
        _show(trained, prompt, top, json)
        return
    for line in sys.stdin:
        try:
            _show(trained, line.rstrip("\n"), top, json)
            if not json:
                print(flush=True)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)


def _show(trained: TrainedRun, prompt: str, top: int, json: bool) -> None:
    suggestions = text_task(trained).suggest(trained.model, prompt, top)
    if json:
        found = [{"text": text, "probability": probability} for text, probability in suggestions]
        print(json_format.dumps({"prompt": prompt, "suggestions": found}), flush=True)
        return
    for text, probability in suggestions:
        # A space or the end of a line would not be seen.
        shown = text if text.strip() else json_format.dumps(text)
        print(f"{probability:7.2%}  {shown}", flush=True)


if __name__ == "__main__":
    sys.exit(run_app(app))
