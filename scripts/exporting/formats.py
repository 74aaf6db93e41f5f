"""Writes a model in a format, and checks that what was written is the model.

Nothing is unpickled: a .pth is read back as weights only, a torch.export program not at all.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common.errors import InputError
from common.onnx_models import TOLERANCE, export_onnx, is_text, open_session
from common.tensors import encode, open_mapped
from scripts.serving.metadata import Format

if TYPE_CHECKING:
    import torch

SUFFIXES: dict[Format, str] = {
    "safetensors": ".safetensors",
    "pth": ".pth",
    "onnx": ".onnx",
    "onnx-int8": ".int8.onnx",
    "torch-export": ".pt2",
}


class Written(NamedTuple):
    """What was written: the scores that it gives, and which sizes of its input vary, by name."""

    scores: Callable[[torch.Tensor], torch.Tensor]
    varying: Sequence[str]


def write(
    kind: Format, model: torch.nn.Module, example: torch.Tensor | None, path: Path
) -> Written:
    """Write a model and return it as it was written.

    Args:
        kind: the format.
        model: on the CPU; it is put into evaluation mode.
        example: inputs as the model takes them, at least two; None, where only weights are
            written: not one tensor.
        path: of the file.

    Raises:
        InputError: the extra is missing, or the format has no such model.
        OSError: the file can't be written.
    """
    model.eval()
    match kind:
        case "safetensors":
            return _write_safetensors(model, example, path)
        case "pth":
            return _write_pth(model, example, path)
    if example is None:
        raise ValueError("a program is traced by an example")
    match kind:
        case "onnx":
            export_onnx(model, example, path)
            return read_onnx(path)
        case "onnx-int8":
            return _write_int8(model, example, path)
        case "torch-export":
            return _write_program(model, example, path)


def read_onnx(path: Path) -> Written:
    """Return what an ONNX file gives under onnxruntime."""
    import torch

    session = open_session(path, torch.get_num_threads())
    (value,) = session.get_inputs()

    def scores(inputs: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {value.name: inputs.numpy()})[0])

    return Written(scores, [size for size in value.shape if isinstance(size, str)])


def _write_safetensors(model: torch.nn.Module, example: torch.Tensor | None, path: Path) -> Written:
    path.write_bytes(encode(model.state_dict()))
    _check_weights(model, open_mapped(path), path)
    return _as_is(model, example)


def _write_pth(model: torch.nn.Module, example: torch.Tensor | None, path: Path) -> Written:
    import torch

    torch.save(dict(model.state_dict()), path)
    _check_weights(model, torch.load(path, weights_only=True), path)
    return _as_is(model, example)


def _as_is(model: torch.nn.Module, example: torch.Tensor | None) -> Written:
    text = example is not None and is_text(example)
    return Written(model, ("batch", "length") if text else ("batch",))


def _check_weights(model: torch.nn.Module, found: dict[str, torch.Tensor], path: Path) -> None:
    wanted = model.state_dict()
    if found.keys() != wanted.keys() or any(
        not found[name].equal(tensor) for name, tensor in wanted.items()
    ):
        raise InputError(f"{path.name} does not read as it was written; is the disk sound?")


def _write_int8(model: torch.nn.Module, example: torch.Tensor, path: Path) -> Written:
    from scripts.exporting.quantising import quantise

    whole = path.with_suffix(".float")
    export_onnx(model, example, whole)
    quantise(whole, path)
    whole.unlink()
    return read_onnx(path)


def _write_program(model: torch.nn.Module, example: torch.Tensor, path: Path) -> Written:
    import torch

    shapes = ({0: torch.export.Dim("batch", min=1)},)
    try:
        with warnings.catch_warnings():
            # Of an LSTM's weights, which it takes for state.
            warnings.simplefilter("ignore")
            program = torch.export.export(model, (example,), dynamic_shapes=shapes)
    # What tracing raises.
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:300]
        name = type(model).__name__
        raise InputError(f"{name} can't be written as a torch.export program: {reason}") from error
    # Or it would carry along held-out examples, as a pickle, and paths of this machine.
    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    scores = program.module()
    with torch.inference_mode():
        for part in (example, example[:1]):
            if not torch.allclose(scores(part), model(part), rtol=TOLERANCE, atol=TOLERANCE):
                name = type(model).__name__
                raise InputError(f"{name} gives other scores as a torch.export program")
    torch.export.save(program, path)
    return Written(scores, ("batch",))
