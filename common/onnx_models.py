"""Models as ONNX graphs, which run without torch: any number of examples at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def export_onnx(model: torch.nn.Module, example: torch.Tensor, path: Path) -> None:
    """Write a model as ONNX, with one input named "input" and one output named "output".

    The first dimension may be any; so may a text's length (an example of integers, of two
    dimensions) where the model lets it.

    Args:
        model: it is put into evaluation mode.
        example: an input, of shape [n, ...].
        path: of the file.
    """
    import torch

    model.eval()
    # A dimension of one would be taken for a constant.
    example = torch.cat([example, example])[:2]
    is_text = example.dim() == 2 and not example.is_floating_point()
    try:
        _export(model, example, path, {0: "batch", 1: "length"} if is_text else {0: "batch"})
    except torch.onnx.OnnxExporterError:
        if not is_text:
            raise
        _export(model, example, path, {0: "batch"})


def _export(
    model: torch.nn.Module, example: torch.Tensor, path: Path, dynamic: dict[int, str]
) -> None:
    import torch

    torch.onnx.export(
        model,
        (example,),
        path,
        input_names=["input"],
        output_names=["output"],
        dynamo=True,
        external_data=False,
        dynamic_shapes=(dynamic,),
        verbose=False,
    )
