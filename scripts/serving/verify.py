"""`./scripts/verify`: is an exported model what was written, and does it run? A line a check.

Needs only numpy and onnxruntime, and unpickles nothing: what can't be checked so, it says.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from common.commands import command
from common.errors import InputError
from common.process import begin_process, exit_status
from scripts.serving.arguments import Arguments
from scripts.serving.loading import from_onnx, read_checked
from scripts.serving.model import Array, Model

# A batch that can't be taken for the other dimensions, and one that can't hide them.
_BATCHES = (1, 3)


def verify() -> int:
    """Print what was checked, and what wasn't; return 0 if nothing was wrong."""
    parser = Arguments(
        command("verify"),
        "Checks an exported model: its digest, its metadata, and that it runs.",
    )
    parser.add_argument("file", type=Path, help="the model, its metadata beside it")
    path: Path = parser.parse_args().file
    metadata, content = read_checked(path)
    _say("digest", f"SHA-256 {metadata.sha256}, {len(content):,} bytes")
    _say(
        "metadata",
        f"{metadata.format}, model {metadata.model} of {metadata.task}, "
        f"round {metadata.round} of run {metadata.run_id}",
    )
    match metadata.format:
        case "onnx" | "onnx-int8":
            model = from_onnx(path, metadata, content)
            _say("load", f"input {model.dtype} {['batch', *(model.shape or [])]}, as described")
            _say("run", _run(model))
        case "safetensors":
            _check_tensors(path, content)
        case "pth":
            _leave_out("load", "a .pth is a pickle, which can run code; nothing is unpickled here")
        case "torch-export":
            _leave_out("load", "a program of torch.export; that takes torch")
        case other:
            raise InputError(f"{path}: no format {other!r} is known here; use a newer Folkmoot")
    return 0


def _say(check: str, found: str) -> None:
    print(f"ok           {check:9} {found}")


def _leave_out(check: str, reason: str) -> None:
    print(f"not checked  {check:9} {reason}")


def _run(model: Model) -> str:
    """Run it on batches of blank examples, and return what came out."""
    for count in _BATCHES:
        found = model.predict([_blank(model)] * count)
        if len(found) != count:
            raise InputError(f"the model answers {count} inputs by outputs of {found.shape}")
    each = f"{found[0].size} finite {model.outputs.raw}"
    return f"batches of {' and '.join(map(str, _BATCHES))}, {each} for each input"


def _blank(model: Model) -> Array:
    sizes = [model.length] if model.symbols is not None else model.shape or ()
    return np.zeros([size if isinstance(size, int) else 1 for size in sizes], model.dtype)


def _check_tensors(path: Path, content: bytes) -> None:
    if find_spec("safetensors") is None:
        _leave_out("tensors", "the package safetensors is not installed")
        return
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(content)
    # numpy has no bfloat16, which safetensors has.
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} can't be read as safetensors: {reason}") from error
    values = sum(tensor.size for tensor in tensors.values())
    wrong = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if wrong:
        raise InputError(f"{path}: tensor {wrong[0]} holds values that are not finite")
    _say("tensors", f"{len(tensors)} tensors, {values:,} finite values")
    _leave_out("run", "a file of tensors has no program; that takes torch and the task")


def main() -> int:
    """Return the exit status: 0 nothing wrong, 2 with a line that says what is."""
    begin_process()
    return exit_status(verify)


if __name__ == "__main__":
    sys.exit(main())
