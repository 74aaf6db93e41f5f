"""Models as ONNX graphs, which run without torch; written, and checked against the model itself.

By torch's exporter that traces: it takes half a second and lets an LSTM's text be of any length.
The other one, by torch.export, takes 15 to 60 seconds and ties an LSTM to one length.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import InputError
from common.extras import require

if TYPE_CHECKING:
    import torch
    from onnxruntime import InferenceSession

# Of an output's value: so much, and so much of the value itself.
TOLERANCE = 1e-4


def export_onnx(model: torch.nn.Module, example: torch.Tensor, path: Path) -> None:
    """Write a model as ONNX, with one input, "input", and one output, "output".

    It takes any number of examples at once; tokens of text of any length, too, where the graph
    then gives what the model does. The same weights give the same bytes.

    Args:
        model: on the CPU; it is put into evaluation mode.
        example: inputs as the model takes them, at least one; the graph is checked with them.
        path: of the file.

    Raises:
        InputError: the extra is missing, or ONNX has no such model.
    """
    require("onnx", "an ONNX model", "onnx", "onnxruntime")
    import torch

    model.eval()
    # A size of one might be taken for a constant.
    example = torch.cat([example, example])
    for varying in (("batch", "length"), ("batch",)) if is_text(example) else (("batch",),):
        try:
            with torch.inference_mode():
                _write(model, example, varying, path)
                _check(model, example, varying, path)
            return
        # What tracing raises, and the check: with its length fixed, the graph may be right.
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = error
    path.unlink(missing_ok=True)
    name = type(model).__name__
    raise InputError(
        f"{name} can't be written as ONNX: {' '.join(str(reason).split())[:300]}"
    ) from reason


def is_text(example: torch.Tensor) -> bool:
    """Say whether inputs are tokens."""
    return example.ndim == 2 and not example.is_floating_point()


def open_session(graph: Path | bytes, threads: int = 0) -> InferenceSession:
    """Return an onnxruntime session of a graph, on the CPU; by default, on all its cores.

    Raises:
        Exception: it is none; onnxruntime's own errors have no other common class.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait for work would spin, which others could use.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # What goes wrong is raised.
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])


def varying_sizes(
    scores: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor, varying: Sequence[str]
) -> tuple[list[int | str], list[int | str]]:
    """Return the shapes of input and output, with the names of the input's first, varying sizes.

    Args:
        scores: the model.
        example: of two and more in each varying size.
        varying: what the input's first sizes are called, e.g. ["batch"].
    """
    whole = scores(example)
    inputs: list[int | str] = [*varying, *example.shape[len(varying) :]]
    outputs: list[int | str] = [*whole.shape]
    for axis, name in enumerate(varying):
        # Where the output is smaller for an input that is, it varies as that does.
        smaller = scores(example.narrow(axis, 0, example.shape[axis] // 2))
        for place, (size, other) in enumerate(zip(whole.shape, smaller.shape, strict=True)):
            if size != other:
                outputs[place] = name
    return inputs, outputs


def _write(
    model: torch.nn.Module, example: torch.Tensor, varying: Sequence[str], path: Path
) -> None:
    import torch

    shapes = varying_sizes(lambda inputs: _scores(model, inputs), example, varying)
    with warnings.catch_warnings():
        # Of what it traces it can't know whether that varies. The check finds out.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            path,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={
                name: {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}
                for name, shape in zip(("input", "output"), shapes, strict=True)
            },
            dynamo=False,
        )


def _check(
    model: torch.nn.Module, example: torch.Tensor, varying: Sequence[str], path: Path
) -> None:
    """Check that a graph is valid, and gives what the model gives, whatever the sizes.

    Raises:
        ValueError: it is not, or does not.
    """
    import onnx
    import torch

    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(str(error)) from error
    session = open_session(path)
    inputs = [example, example[:1]]
    if "length" in varying:
        inputs += [example[:, :1], example[:3, : example.shape[1] // 2 + 1]]
    for part in inputs:
        try:
            found = torch.from_numpy(session.run(None, {"input": part.numpy()})[0])
        # onnxruntime's own errors have no common class but this.
        except Exception as error:
            raise ValueError(f"onnxruntime can't run it: {error}") from error
        wanted = _scores(model, part)
        if found.shape != wanted.shape or not torch.allclose(
            found, wanted, rtol=TOLERANCE, atol=TOLERANCE
        ):
            raise ValueError(f"of inputs of shape {list(part.shape)}, its outputs are others")


def _scores(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return the output of a model that has one."""
    import torch

    found = model(inputs)
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"it returns {type(found).__name__}, not one tensor")
    return found
