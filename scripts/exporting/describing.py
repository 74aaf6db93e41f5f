"""What an exported file is: where its model comes from, what goes in, and how well it does.

Knows nothing about formats.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common import __version__
from common.errors import CheckpointError, InputError
from common.loading import describe as said
from common.onnx_models import is_text, varying_sizes
from common.tasks import Classes, Examples, Outputs, Task, Values
from common.tasks.inputs import describe
from common.tasks.outputs import describe as outputs_described
from common.tensors import Digest, digest_file
from scripts.exporting.formats import SUFFIXES, Written
from scripts.serving.metadata import Format, Metadata, Value, sha256_of
from scripts.trained_run import TrainedRun, load_trained
from server.storage.run_files import RunFiles, read_json

if TYPE_CHECKING:
    import torch


class Source(NamedTuple):
    """A run's model: what was trained, the run's id, and the committed round it is of."""

    run: TrainedRun
    run_id: str
    round: int

    def file_name(self, kind: Format) -> str:
        """Return what the model's file in a format is called by default."""
        task = self.run.options["task"].replace(":", ".").rpartition(".")[2]
        return f"{task}-{self.run.options['model']}-{self.round}{SUFFIXES[kind]}"


def read_source(run_dir: Path, which: str | None, task: str | None) -> Source:
    """Return a run's model, as it was committed.

    Raises:
        InputError: there is none, or it is damaged.
    """
    files = RunFiles(run_dir)
    run = load_trained(run_dir, which, task)
    said = read_json(run.path.with_suffix(".json"))
    number = said.get("round")
    digest = Digest(said.get("blake3", ""), said.get("size_bytes", 0))
    if digest_file(run.path) != digest or not isinstance(number, int):
        raise CheckpointError(
            f"{run.path} is not the model that {run.path.stem}.json beside it describes: it is "
            "damaged, or the run has gone on just now; try again, or put back a copy"
        )
    return Source(run, files.run_id, number)


def evaluate(
    task: Task, scores: Callable[[torch.Tensor], torch.Tensor], examples: Examples
) -> dict[str, float]:
    """Return the task's means over examples, by whatever gives scores.

    Raises:
        InputError: the task's own evaluation failed.
    """
    import torch

    class Scores(torch.nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return scores(inputs)

    model = scores if isinstance(scores, torch.nn.Module) else Scores()
    try:
        means = task.evaluate(model, examples).metrics
    except InputError:
        raise
    # A task's own code.
    except Exception as error:
        raise InputError(f"--task: its evaluation raised {said(error)}") from error
    return {"examples": len(examples.targets), **means}


def metadata_of(
    path: Path,
    kind: Format,
    source: Source,
    written: Written,
    example: torch.Tensor | None,
    outputs: Outputs | None,
    evaluation: Mapping[str, float] | None,
) -> Metadata:
    """Return the metadata of a written file.

    Without an example, they do not say what goes in and comes out; without outputs, that these
    are numbers.
    """
    task, _, _, options = source.run
    input_, output = (None, None) if example is None else _values(written, example)
    return Metadata(
        file=path.name,
        format=kind,
        size_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        run_id=source.run_id,
        round=source.round,
        task=options["task"],
        model=options["model"],
        input=input_,
        output=output,
        classes=list(outputs.names) if isinstance(outputs, Classes) else [],
        inputs=None if task.inputs is None else describe(task.inputs),
        length=example.shape[1] if example is not None and is_text(example) else None,
        evaluation=evaluation,
        versions=_versions(kind),
        outputs=None if example is None else outputs_described(outputs or Values()),
    )


def _values(written: Written, example: torch.Tensor) -> tuple[Value, Value]:
    import torch

    with torch.inference_mode():
        found = written.scores(example)
        sizes = varying_sizes(written.scores, example, written.varying)
    names, tensors = ("input", "output"), (example, found)
    input_, output = (
        Value(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=shape)
        for name, tensor, shape in zip(names, tensors, sizes, strict=True)
    )
    return input_, output


def _versions(kind: Format) -> dict[str, str]:
    packages = ["torch", *(["onnx", "onnxruntime"] if kind.startswith("onnx") else [])]
    packages += ["safetensors"] if kind == "safetensors" else []
    return {
        "folkmoot": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
