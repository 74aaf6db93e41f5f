"""Loads exported ONNX models, checked: their digest, and that their metadata are their own.

Needs numpy and onnxruntime only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.commands import command
from common.errors import InputError
from common.extras import require
from common.onnx_models import open_session
from common.tasks import inputs as task_inputs
from common.tasks import outputs as task_outputs
from common.tasks.inputs import Images, Inputs
from common.tasks.outputs import Classes, NextSymbol, Outputs
from scripts.serving import metadata as beside
from scripts.serving.metadata import Metadata, Value
from scripts.serving.model import Array, Model

if TYPE_CHECKING:
    pass

# By onnxruntime's names.
_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


def read_checked(path: Path) -> tuple[Metadata, bytes]:
    """Return an exported model's metadata and its bytes, which are those that were written.

    Raises:
        InputError: one of them is missing or damaged.
    """
    if path.is_dir():
        raise InputError(
            f"{path} is a folder; of a run, {command('export')} {path} --format onnx writes "
            "the model"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    metadata = beside.read(path)
    found = hashlib.sha256(content).hexdigest()
    if found != metadata.sha256:
        raise InputError(
            f"{path} is damaged, or not the file that its metadata describe: its SHA-256 is "
            f"{found}, not {metadata.sha256}; copy both again"
        )
    return metadata, content


def load_model(path: Path, threads: int = 1) -> tuple[Model, Metadata]:
    """Return an exported ONNX model.

    Raises:
        InputError: it is none, it is damaged, or onnxruntime is missing.
    """
    metadata, content = read_checked(path)
    if metadata.format not in ("onnx", "onnx-int8"):
        raise InputError(f"{path} is {metadata.format}; what runs without torch is --format onnx")
    return from_onnx(path, metadata, content, threads), metadata


def from_onnx(path: Path, metadata: Metadata, content: bytes, threads: int = 1) -> Model:
    """Return the model of an ONNX file's bytes.

    Raises:
        InputError: onnxruntime can't load it, or its metadata are another model's.
    """
    require("onnx", str(path), "onnxruntime")
    try:
        session = open_session(content, threads)
    # onnxruntime's own errors have no common class but this.
    except Exception as error:
        raise InputError(f"{path} is no model for onnxruntime: {_line(error)}") from error
    try:
        input_, output, outputs = described(metadata)
        inputs = None if metadata.inputs is None else task_inputs.load(metadata.inputs)
        if not isinstance(inputs, Images) and not isinstance(outputs, NextSymbol):
            # Of other answers to a text than what comes next, its tokens are the input.
            inputs = None
        _check_value(input_, session.get_inputs())
        _check_value(output, session.get_outputs())
        _check(metadata, input_, output, inputs, outputs)
    except (ValueError, TypeError, AttributeError, InputError) as error:
        message = f"{path}: the metadata beside it are not this model's: {_line(error)}"
        raise InputError(message) from error

    def scores(batch: Array) -> Array:
        try:
            found: Array = session.run([output.name], {input_.name: batch})[0]
        except Exception as error:
            raise InputError(f"the model can't be run on an input: {_line(error)}") from error
        return found

    return Model(
        scores=scores,
        dtype=input_.dtype,
        shape=input_.shape[1:],
        outputs=outputs,
        inputs=inputs,
        length=metadata.length,
    )


def described(metadata: Metadata) -> tuple[Value, Value, Outputs]:
    """Return what goes into a model that runs, what comes out, and what that is.

    Raises:
        ValueError: it is not said, or not as it should be.
    """
    if metadata.input is None or metadata.output is None:
        raise ValueError("its input and output are missing")
    if metadata.outputs is not None:
        return metadata.input, metadata.output, task_outputs.load(metadata.outputs)
    text = metadata.inputs is not None and metadata.inputs.get("kind") != "image"
    follows = text and len(metadata.output.shape) == 3
    return (
        metadata.input,
        metadata.output,
        NextSymbol() if follows else Classes(metadata.classes),
    )


def _check(
    metadata: Metadata, input_: Value, output: Value, inputs: Inputs | None, outputs: Outputs
) -> None:
    """Check that metadata can be used.

    Raises:
        ValueError, TypeError, InputError: they can't.
    """
    outputs.check(output.shape)
    if isinstance(inputs, Images):
        # Wrong values would come out as an error at the first picture.
        mean, std = (np.array(values, np.float32) for values in (inputs.mean, inputs.std))
        if [*np.broadcast_shapes(mean.shape, std.shape), inputs.height, inputs.width] != (
            input_.shape[1:]
        ):
            raise ValueError(f"its input's shape {input_.shape} is not its pictures'")
    elif inputs is not None:
        if not (isinstance(metadata.length, int) and metadata.length > 0):
            raise ValueError("length is missing")
        if len(inputs) != output.shape[1]:
            raise ValueError(f"{len(inputs)} symbols for {output.shape[1]} scores")
    if not all(isinstance(name, str) for name in outputs.names):
        raise ValueError("a class has no name")


def _check_value(value: Value, found: Sequence[Any]) -> None:
    node = next((node for node in found if node.name == value.name), None)
    if node is None or len(found) != 1:
        raise ValueError(f"it has {[node.name for node in found]}, not {value.name!r}")
    sizes = [size if isinstance(size, int) else None for size in node.shape]
    if _DTYPES.get(node.type) != value.dtype or len(sizes) != len(value.shape) or sizes[0]:
        raise ValueError(f"{value.name} is {node.type} {node.shape}")
    for size, described in zip(sizes, value.shape, strict=True):
        # The graph may leave open what is known.
        if size not in (None, described):
            raise ValueError(f"{value.name} is of shape {node.shape}, not {value.shape}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
