"""Models and updates as safetensors bytes: encode, open mapped, and check against a schema.

Specification: https://github.com/huggingface/safetensors#format. Knows nothing about
transfers or rounds. Torch is imported where it is used, so that schemas stay cheap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common.errors import TensorError

if TYPE_CHECKING:
    import torch

# A window of float64 values (2 MiB) stays within a core's cache.
WINDOW = 1 << 18


class TensorSpec(NamedTuple):
    """A tensor's dtype, as safetensors names it (e.g. "F32"), and its shape."""

    dtype: str
    shape: tuple[int, ...]


Schema = dict[str, TensorSpec]


class Digest(NamedTuple):
    """SHA-256 (64 lower-case hexadecimal digits) and size in bytes of a payload."""

    sha256: str
    size_bytes: int


def digest_bytes(data: bytes | bytearray | memoryview) -> Digest:
    """Return the digest of bytes in memory."""
    return Digest(hashlib.sha256(data).hexdigest(), len(data))


def digest_file(path: Path) -> Digest:
    """Return the digest of a file, read in pieces.

    Raises:
        OSError: the file can't be read.
    """
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def encode(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return tensors as the bytes of a safetensors file; the same tensors give the same bytes."""
    from safetensors.torch import save

    plain: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        # Tied weights share memory, which a file can't; each name gets its own bytes.
        shared = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if shared in seen else value
        seen.add(shared)
    return save(plain)


def decode(data: bytes) -> dict[str, torch.Tensor]:
    """Return the tensors in the bytes of a safetensors file.

    Raises:
        TensorError: the bytes are no valid safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except SafetensorError as error:
        raise TensorError(f"not a safetensors file: {error}") from error


def open_mapped(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file as views of the mapped file; never write to them.

    Raises:
        TensorError: the file is missing, unreadable or no valid safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TensorError(f"{path.name} is not a readable safetensors file: {error}") from error


def schema_of(path: Path) -> Schema:
    """Return the names, dtypes and shapes in a safetensors file, without reading its values.

    Raises:
        TensorError: the file is missing, unreadable or no valid safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: TensorSpec(view.get_dtype(), tuple(view.get_shape()))
                for name, view in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise TensorError(f"{path.name} is not a readable safetensors file: {error}") from error


def check_schema(schema: Schema, expected: Schema) -> None:
    """Check that a file holds exactly the expected tensors.

    Raises:
        TensorError: names the first tensor that is missing, unknown, or of another dtype or shape.
    """
    for name in sorted(expected.keys() | schema.keys()):
        if name not in schema:
            raise TensorError(f"tensor {name!r} is missing")
        if name not in expected:
            raise TensorError(f"tensor {name!r} is not in the model")
        if schema[name] != expected[name]:
            raise TensorError(
                f"tensor {name!r} is {_describe(schema[name])}, "
                f"the model's is {_describe(expected[name])}"
            )


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that no floating-point value is NaN or infinite.

    Raises:
        TensorError: names the first tensor, by name, that holds one.
    """
    import torch

    for name in sorted(tensors):
        if not tensors[name].is_floating_point():
            continue
        for window in windows(tensors[name]):
            if not torch.isfinite(window).all():
                raise TensorError(f"tensor {name!r} holds NaN or infinity")


def windows(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a contiguous tensor's values in order, flat, as views of at most WINDOW values."""
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), WINDOW):
        yield flat[start : start + WINDOW]


def _describe(spec: TensorSpec) -> str:
    return f"{spec.dtype} of shape {list(spec.shape)}"
