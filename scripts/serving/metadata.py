"""What stands beside an exported model, as NAME.json beside NAME: how to feed it, and what it is.

Needs nothing but Python, so that it reads where there is no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from common.commands import command
from common.errors import InputError

Format = Literal["safetensors", "pth", "onnx", "onnx-int8", "torch-export"]


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor that goes in or comes out: its name in the graph, numpy's dtype, and its shape.

    A dimension that varies is its name instead of its size, e.g. ["batch", 1, 28, 28].
    """

    name: str
    dtype: str
    shape: list[int | str]


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The metadata of one exported file."""

    # Without its folder.
    file: str
    format: Format
    size_bytes: int
    sha256: str
    # Where it comes from: the run, its committed round, the task and its model by name.
    run_id: str
    round: int
    task: str
    model: str
    # None where the model takes something else than one tensor; then only its weights are here.
    input: Value | None
    output: Value | None
    # The classes' names; empty where a class is its number.
    classes: list[str]
    # How a picture or a text becomes the input, as common.tasks.inputs describes it; None: the
    # task does not say. Of text, the most tokens that are fed at once.
    inputs: Mapping[str, Any] | None
    length: int | None
    # On the run's test set, by this file: examples, loss, accuracy. None: not evaluated.
    evaluation: Mapping[str, float] | None
    # Of folkmoot, Python, torch and what wrote the file.
    versions: Mapping[str, str]
    # What the output is, as common.tasks.outputs describes it: of classes and labels, scores that
    # are no probabilities; softmax and sigmoid make them. None: classes, or what follows a text.
    outputs: Mapping[str, Any] | None = None


def path_beside(model: Path) -> Path:
    """Return where a model's metadata are."""
    return model.with_name(model.name + ".json")


def write(metadata: Metadata, model: Path) -> None:
    """Write a model's metadata beside it."""
    text = json.dumps(asdict(metadata), indent=1) + "\n"
    path_beside(model).write_text(text, encoding="utf-8")


def read(model: Path) -> Metadata:
    """Return the metadata of an exported model.

    Raises:
        InputError: they are missing or damaged.
    """
    path = path_beside(model)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; name a model that {command('export')} wrote, and keep its "
            "metadata beside it"
        ) from error
    try:
        value = json.loads(text)
        for side in ("input", "output"):
            value[side] = None if value[side] is None else Value(**value[side])
        return Metadata(**value)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: no metadata of a model; export it again") from error


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
