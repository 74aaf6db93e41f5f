"""Prints what a model makes of pictures, arrays or texts: classes, numbers, or what comes next.

The model is an exported one, which runs without torch, or a run's. Only reads.
"""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from common.errors import InputError
from common.pictures import open_picture
from common.tasks import Classes, Outputs, Task, Values
from common.tasks.inputs import Images
from common.tasks.outputs import Answers, NextSymbol
from scripts.cli import command_line, run_app
from scripts.serving.loading import load_model
from scripts.serving.model import Array, Model

# Of an input with more answers, a table has the first.
_MOST_ROWS = 100


class Told(NamedTuple):
    """An input, the answers to it and, of a map, the class at each place."""

    name: str
    answers: Answers
    map: list[Any] | None


app = command_line("predict")


@app.default
def predict(
    model: Path,
    /,
    *inputs: str,
    top: Annotated[int, Parameter(validator=Number(gte=1))] = 3,
    json: Annotated[bool, Parameter(negative=())] = False,
    task: str | None = None,
) -> None:
    """Print the classes, labels or numbers of pictures or arrays, or what comes after texts.

    Args:
        model: An exported .onnx file, or a run directory, whose best model it then is.
        inputs: Picture files; .npy files of an example or several, of the shape and with the
            values that the model takes; or texts. If there are none, a model of text takes each
            line of the standard input as one.
        top: How many answers to print for each, the likeliest first; numbers are printed all, and
            all labels that hold.
        json: Print JSON, one object an input.
        task: Of a run directory, the run's task if it is your own: its code is run here.
    """
    loaded = _of_run(model, task) if model.is_dir() else load_model(model)[0]
    if inputs:
        told = [answer for name in inputs for answer in _answers(loaded, name, top)]
        _show(told, loaded.outputs, json)
        return
    if loaded.symbols is None:
        raise InputError(f"INPUT: name {_files(loaded)}")
    for line in sys.stdin:
        try:
            _show(_answers(loaded, line.rstrip("\n"), top), loaded.outputs, json)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)


def _of_run(folder: Path, named: str | None) -> Model:
    import torch

    from common.tasks.text import TextTask
    from scripts.trained_run import example_of, held_out, load_trained, outputs_of

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
        return Model(
            scores=scores,
            dtype="int64",
            inputs=task.inputs,
            length=task.length,
            outputs=task.outputs or NextSymbol(),
        )
    pictures = task.inputs if isinstance(task.inputs, Images) else None
    data_dir = Path(run.options.get("data_dir", "data"))
    examples = None if pictures else held_out(task, data_dir)
    example: torch.Tensor | None = None
    if pictures or examples:
        example = example_of(task, examples, data_dir)
        outputs = outputs_of(task, model, example, examples)
    else:
        plain = task.classes or type(task).loss is Task.loss
        outputs = task.declared or (Classes(task.classes) if plain else None)
    if outputs is None:
        print(
            "note: the task's `outputs` do not say what these numbers are; they are shown as the "
            "model gives them",
            file=sys.stderr,
        )
    return Model(
        scores=scores,
        dtype="float32" if example is None else str(example.dtype).removeprefix("torch."),
        shape=None if example is None else example.shape[1:],
        outputs=outputs or Values(),
        inputs=pictures,
    )


def _answers(model: Model, name: str, top: int) -> list[Told]:
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
        found = [(model.answers(row, top), model.places(row)) for row in model.predict(batch)]
    except OSError as error:
        raise InputError(f"INPUT: {name}: {error.strerror}") from error
    except InputError as error:
        raise InputError(f"INPUT: {file}{error}") from error
    return [Told(name, *answers) for name, answers in zip(names, found, strict=True)]


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


def _show(found: list[Told], outputs: Outputs, json: bool) -> None:
    if json:
        for told in found:
            shown: dict[str, Any] = {"input": told.name, "answers": list(map(asdict, told.answers))}
            print(json_format.dumps(shown | ({"map": told.map} if told.map else {})), flush=True)
        return
    table = Table("input", "answer", box=None, pad_edge=False)
    table.add_column(outputs.answered, justify="right")
    for told in found:
        for index, answer in enumerate(told.answers[:_MOST_ROWS]):
            # A space or the end of a line would not be seen.
            label = answer.label if answer.label.strip() else json_format.dumps(answer.label)
            table.add_row("" if index else told.name, label, answer.said)
        if len(told.answers) > _MOST_ROWS:
            rest = len(told.answers) - _MOST_ROWS
            table.add_row("", f"... and {rest:,} more", "with --json")
    Console(highlight=False, markup=False, emoji=False).print(table)


if __name__ == "__main__":
    sys.exit(run_app(app))
