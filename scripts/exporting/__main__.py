"""`./scripts/export`: writes a run's model in a format, with its metadata beside it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from common.errors import InputError
from common.extras import require
from scripts.cli import command_line, run_app
from scripts.exporting.describing import (
    Source,
    evaluate,
    metadata_of,
    read_source,
)
from scripts.exporting.formats import write
from scripts.serving import metadata as beside
from scripts.serving.metadata import Format, Metadata
from scripts.trained_run import example_of, held_out, outputs_of

# Of these formats, only the weights are written, and no example is needed.
_WEIGHTS: tuple[Format, ...] = ("safetensors", "pth")

app = command_line("export")


@app.default
def export(
    run: Path,
    /,
    *,
    format: Format,  # noqa: A002
    which: Literal["best", "global"] | None = None,
    output: Path | None = None,
    data_dir: Path | None = None,
    max_loss: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.01,
    force: Annotated[bool, Parameter(negative=())] = False,
    task: str | None = None,
) -> None:
    """Write a run's model in a format, checked, and its metadata as NAME.json beside it.

    safetensors and pth hold the weights alone. onnx runs without torch, on any number of
    examples at once; onnx-int8 is the same in a quarter of the size, for small devices.
    torch-export is a program for torch, of one length of text. Its loader, torch.export.load,
    unpickles: load no such file that you don't trust. The others execute nothing, the .pth as
    long as it is loaded with weights_only=True.

    Args:
        run: The run directory.
        format: The format.
        which: best, or global for the last; if not given, the best where there is one.
        output: The file; what is there is written over. RUN/exports/TASK-MODEL-ROUND.* if not
            given.
        data_dir: Folder of the held-out data that the file is checked and evaluated with; the
            run's own if not given.
        max_loss: Accuracy that onnx-int8 may cost; if it costs more it is not written.
        force: Write onnx-int8, whatever it costs.
        task: The run's task if it is your own: its code is run here.
    """
    if format.startswith("onnx"):
        require("onnx", f"--format {format}", "onnx", "onnxruntime")
    source = read_source(run, which, task)
    path = output or run / "exports" / source.file_name(format)
    data = data_dir or Path(source.run.options.get("data_dir", "data"))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # So that what was there stays until the new file is whole.
        with TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
            new = Path(folder) / path.name
            metadata = _write(source, format, data, new, None if force else max_loss)
            beside.write(metadata, new)
            new.replace(path)
            beside.path_beside(new).replace(beside.path_beside(path))
    except OSError as error:
        raise InputError(f"--output: can't write {path}: {error.strerror}") from error
    print(f"Model:    {path}")
    print(f"Metadata: {beside.path_beside(path)}")


def _write(
    source: Source, kind: Format, data_dir: Path, path: Path, max_loss: float | None
) -> Metadata:
    """Write and evaluate a file, print how it does, and return its metadata.

    Raises:
        InputError: it can't be written; or it costs more accuracy than `max_loss`, if not None.
    """
    task, model = source.run.task, source.run.model
    examples = held_out(task, data_dir)
    example = example_of(task, examples, data_dir)
    outputs = None
    try:
        outputs = outputs_of(task, model, example, examples)
    except InputError as error:
        if kind not in _WEIGHTS:
            raise InputError(
                f"--format {kind}: {error}; --format {' and '.join(_WEIGHTS)} need no such thing"
            ) from error
        example, said = None, f"not described: {error}"
    else:
        said = outputs.said if outputs else "numbers; the task's `outputs` do not say what they are"
    written = write(kind, model, example, path)
    found, why = None, f"no data in {data_dir} that can be read"
    if examples is not None:
        try:
            found = evaluate(task, written.scores, examples)
        except InputError as error:
            if kind not in _WEIGHTS:
                raise
            why = str(error)
    metadata = metadata_of(path, kind, source, written, example, outputs, found)
    weights = source.run.path
    print(f"Run:      {source.run_id}: {weights.stem} model, of round {source.round}")
    print(f"Format:   {kind}")
    print(f"Outputs:  {said}")
    if found is None or examples is None:
        original = None
        print(f"Held out: not evaluated: {why}")
    else:
        original = evaluate(task, model, examples) if kind == "onnx-int8" else None
        print(f"Held out: {_listed(found)}, {found['examples']:,} examples")
    print(f"Size:     {metadata.size_bytes:,} bytes")
    if kind == "onnx-int8":
        size = weights.stat().st_size
        means = f"{_listed(original)}, " if original else ""
        print(f"Original: {means}{size:,} bytes")
        if max_loss is not None:
            _check_loss(found, original, max_loss)
    return metadata


def _listed(means: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {mean:.4f}" for name, mean in means.items() if name != "examples")


def _check_loss(
    found: Mapping[str, float] | None, original: Mapping[str, float] | None, max_loss: float
) -> None:
    """Check what eight bits cost.

    Raises:
        InputError: too much, or it can't be known.
    """
    if not (found and original):
        raise InputError(
            "--format onnx-int8: without held-out data there is no saying what it costs; name the "
            "folder with --data-dir, or add --force"
        )
    if "accuracy" not in original:
        raise InputError(
            "--format onnx-int8: its evaluation has no accuracy, so --max-loss can't tell what it "
            f"costs: {_listed(found)} and, before, {_listed(original)}; add --force to write it"
        )
    loss = original["accuracy"] - found["accuracy"]
    # A model that has lost all sense may give NaN.
    if not loss <= max_loss:
        raise InputError(
            f"--format onnx-int8: it costs {loss:.4f} of the accuracy, --max-loss is {max_loss:g}; "
            "nothing was written; allow more, or add --force"
        )


if __name__ == "__main__":
    sys.exit(run_app(app))
