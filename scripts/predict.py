"""Prints what a model makes of pictures, arrays or texts: classes, or what comes next.

The model is an exported one, which runs without torch, or a run's. Only reads.
"""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from common.errors import InputError
from common.pictures import open_picture
from common.tasks.inputs import Images
from scripts.commands import run_app
from scripts.serving.loading import load_model
from scripts.serving.model import Answer, Array, Model

app = App(
    name="./scripts/predict",
    help="Prints what a model makes of pictures, arrays or texts.",
    version_flags=(),
    help_format="plaintext",
)


@app.default
def predict(
    model: Path,
    /,
    *inputs: str,
    top: Annotated[int, Parameter(validator=Number(gte=1))] = 3,
    json: Annotated[bool, Parameter(negative=())] = False,
    task: str | None = None,
) -> None:
    """Print the likeliest classes of pictures or arrays, or what comes next after texts.

    Args:
        model: An exported .onnx file, or a run directory, whose best model it then is.
        inputs: Picture files; .npy files of an example or several, of the shape and with the
            values that the model takes; or texts. If there are none, a model of text takes each
            line of the standard input as one.
        top: How many answers to print for each, the likeliest first.
        json: Print JSON, one object an input.
        task: Of a run directory, the run's task if it is your own: its code is run here.
    """
    loaded = _of_run(model, task) if model.is_dir() else load_model(model)[0]
    if inputs:
        _show([answer for name in inputs for answer in _answers(loaded, name, top)], json)
        return
    if loaded.symbols is None:
        raise InputError(f"INPUT: name {_files(loaded)}")
    for line in sys.stdin:
        try:
            _show(_answers(loaded, line.rstrip("\n"), top), json)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)


def _of_run(folder: Path, named: str | None) -> Model:
    import torch

    from common.tasks.text import TextTask
    from scripts.exporting.describing import held_out
    from scripts.trained import load_trained

    run = load_trained(folder, task=named)
    model, task = run.model.eval(), run.task

    def scores(batch: Array) -> Array:
        try:
            with torch.inference_mode():
                found: Array = model(torch.from_numpy(batch)).numpy()
        # The model may be anyone's, and there may be no saying what it takes.
        except Exception as error:
            reason = " ".join(str(error).split())
            raise InputError(f"the model can't be run on an input: {reason}") from error
        return found

    if isinstance(task, TextTask):
        return Model(scores=scores, dtype="int64", inputs=task.inputs, length=task.length)
    pictures, dtype = None, "float32"
    shape: Sequence[int] | None = None
    if isinstance(task.inputs, Images):
        pictures = task.inputs
        shape = len(pictures.mean), pictures.height, pictures.width
    elif examples := held_out(task, Path(run.options.get("data_dir", "data"))):
        # The task doesn't say what it takes, but its data show it.
        shape = examples.inputs.shape[1:]
        dtype = str(examples.inputs.dtype).removeprefix("torch.")
    return Model(scores=scores, dtype=dtype, shape=shape, classes=task.classes, inputs=pictures)


def _answers(model: Model, name: str, top: int) -> list[tuple[str, list[Answer]]]:
    """Return the answers to an input, which may be a file of several examples, with its name."""
    examples: Iterable[tuple[str, Array]]
    file = f"{name}: "
    try:
        if name.endswith(".npy"):
            examples = _of_array(model, name)
        elif model.symbols is not None:
            file = ""
            examples = [(name, model.of_text(name))]
        elif model.takes == "pictures":
            examples = [(name, model.of_picture(open_picture(Path(name).read_bytes())))]
        else:
            raise InputError(f"name {_files(model)}")
        names, batch = zip(*examples, strict=True)
        found = [model.likeliest(row, top) for row in model.probabilities(batch)]
    except OSError as error:
        raise InputError(f"INPUT: {name}: {error.strerror}") from error
    except InputError as error:
        raise InputError(f"INPUT: {file}{error}") from error
    return list(zip(names, found, strict=True))


def _of_array(model: Model, name: str) -> list[tuple[str, Array]]:
    try:
        values: Any = np.load(name, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError("no array in numpy's format") from error
    dimensions = model.dimensions
    if dimensions is not None and np.ndim(values) == dimensions + 1 and len(values):
        return [(f"{name}[{n}]", model.of_array(row)) for n, row in enumerate(values)]
    return [(name, model.of_array(values))]


def _files(model: Model) -> str:
    return "picture or .npy files" if model.takes == "pictures" else ".npy files"


def _show(found: list[tuple[str, list[Answer]]], json: bool) -> None:
    if json:
        for name, answers in found:
            shown = {"input": name, "answers": [asdict(answer) for answer in answers]}
            print(json_format.dumps(shown), flush=True)
        return
    table = Table("input", "answer", box=None, pad_edge=False)
    table.add_column("probability", justify="right")
    for name, answers in found:
        for index, answer in enumerate(answers):
            # A space or the end of a line would not be seen.
            label = answer.label if answer.label.strip() else json_format.dumps(answer.label)
            table.add_row("" if index else name, label, f"{answer.probability:.2%}")
    Console(highlight=False, markup=False, emoji=False).print(table)


if __name__ == "__main__":
    sys.exit(run_app(app))
