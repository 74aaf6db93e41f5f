"""Models and updates as safetensors bytes: encode, view in place, and check against a schema.

Specification: https://github.com/huggingface/safetensors#format. Knows nothing about
transfers or rounds. Torch is imported where it is used, so that schemas stay cheap.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from common.errors import TensorError

if TYPE_CHECKING:
    import torch

# A window of float64 values (1 MiB) stays within a core's cache.
WINDOW = 1 << 17
# As the library has it.
_LARGEST_HEADER = 100_000_000
# Names of the specification, and torch's.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


class TensorSpec(NamedTuple):
    """A tensor's dtype, as safetensors names it (e.g. "F32"), and its shape."""

    dtype: str
    shape: tuple[int, ...]


Schema = dict[str, TensorSpec]

_NAMES = {name: specified for specified, name in _DTYPES.items()}
# As torch has it.
_MOST_DIMENSIONS = 64


class Digest(NamedTuple):
    """BLAKE3 (64 lower-case hexadecimal digits) and size in bytes of a payload."""

    blake3: str
    size_bytes: int


def digest_bytes(data: bytes | bytearray | memoryview) -> Digest:
    """Return the digest of bytes in memory."""
    return Digest(blake3(data).hexdigest(), len(data))


def digest_file(path: Path) -> Digest:
    """Return the digest of a file.

    Raises:
        OSError: the file can't be read.
    """
    return Digest(blake3().update_mmap(path).hexdigest(), path.stat().st_size)


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


def allocate(size: int) -> memoryview:
    """Return so many writable bytes, in huge pages where the system has them."""
    import numpy as np

    return np.empty(size, np.uint8).data


def copy_header(source: memoryview, target: memoryview) -> None:
    """Give a payload of the same size the tensors of another one; their values stay open.

    Raises:
        TensorError: the source is no valid safetensors file.
    """
    start = _header(source)[1]
    target[:start] = source[:start]


def views(payload: memoryview) -> dict[str, torch.Tensor]:
    """Return the tensors in the bytes of a safetensors file, as views of these bytes.

    Raises:
        TensorError: the bytes are no valid safetensors file.
    """
    import torch

    header, start = _header(payload)
    values = payload[start:]
    found: dict[str, torch.Tensor] = {}
    end = 0
    for name, spec, begin, stop in sorted(header, key=lambda entry: entry[2:]):
        dtype = getattr(torch, _DTYPES.get(spec.dtype, ""), None)
        if dtype is None:
            raise TensorError(f"tensor {name!r} is of an unknown dtype, {spec.dtype}")
        size = math.prod(spec.shape) * dtype.itemsize
        if begin != end or stop - begin != size or stop > len(values):
            raise TensorError(f"tensor {name!r} is not where its shape and dtype put it")
        flat = (
            torch.frombuffer(values[begin:stop], dtype=dtype)
            if size
            else torch.empty(0, dtype=dtype)
        )
        try:
            found[name] = flat.reshape(spec.shape)
        except (RuntimeError, TypeError) as error:  # Nothing, in more rows than can be counted.
            raise TensorError(f"tensor {name!r}: no tensor has the shape {spec.shape}") from error
        end = stop
    if end != len(values):
        raise TensorError(f"{len(values) - end} bytes belong to no tensor")
    return found


def _header(payload: memoryview) -> tuple[list[tuple[str, TensorSpec, int, int]], int]:
    """Return each tensor's name, spec and range within the values, and where the values start."""
    start = 8 + int.from_bytes(payload[:8], "little")
    if start > min(len(payload), 8 + _LARGEST_HEADER):
        raise TensorError("not a safetensors file: it is shorter than its header")
    try:
        # As text: of bytes, json would guess the encoding.
        header = json.loads(str(payload[8:start], "utf-8"))
        header.pop("__metadata__", None)
        entries = [
            (name, TensorSpec(entry["dtype"], tuple(entry["shape"])), *entry["data_offsets"])
            for name, entry in header.items()
        ]
        for _, spec, *offsets in entries:
            if not all(type(n) is int and 0 <= n < 2**64 for n in (*spec.shape, *offsets)):
                raise TypeError
            if len(offsets) != 2 or not isinstance(spec.dtype, str):
                raise TypeError
            if len(spec.shape) > _MOST_DIMENSIONS:
                raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TensorError("not a safetensors file: its header is damaged") from error
    return entries, start


def open_mapped(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file as views of the mapped file; never write to them.

    Raises:
        TensorError: the file is missing, unreadable or no valid safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # The last two for shapes that torch can't have.
    except (SafetensorError, OSError, RuntimeError, TypeError) as error:
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


def specs(tensors: Mapping[str, torch.Tensor]) -> Schema:
    """Return the dtypes and shapes of tensors in memory."""
    return {
        name: TensorSpec(_NAMES.get(str(value.dtype).removeprefix("torch."), "?"), (*value.shape,))
        for name, value in tensors.items()
    }


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


def check_finite(tensors: Mapping[str, torch.Tensor]) -> float:
    """Check that no floating-point value is NaN or infinite; return the L2 norm of all of them.

    Sums are float64; a norm that it can't hold is its largest value.

    Raises:
        TensorError: names the first tensor, by name, that holds NaN or infinity.
    """
    import torch

    norms = [0.0]
    for name in sorted(tensors):
        if not tensors[name].is_floating_point():
            continue
        for window in windows(tensors[name]):
            norm = torch.linalg.vector_norm(window, dtype=torch.float64).item()
            # NaN and infinity stay in a sum, which of float64 values can also overflow.
            if not math.isfinite(norm):
                largest = window.abs().max().item()
                if not math.isfinite(largest):
                    raise TensorError(f"tensor {name!r} holds NaN or infinity")
                norm = largest * torch.linalg.vector_norm(window / largest).item()
            norms.append(norm)
    return min(math.hypot(*norms), sys.float_info.max)


def check_integers(tensors: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]) -> None:
    """Check that an update leaves each integer of its base model within the dtype's range.

    Then no mean of such updates leaves it, whatever their weights.

    Args:
        tensors: the update, of the base's schema.
        base: the base model's integer tensors; others of the update are not looked at.

    Raises:
        TensorError: names the first tensor, by name, that would overflow.
    """
    import numpy as np

    for name in sorted(base):
        # Of one dimension at least: numpy warns of scalars that overflow.
        old, update = base[name].reshape(-1).numpy(), tensors[name].reshape(-1).numpy()
        bounds = np.iinfo(old.dtype)
        # On either side of 0, the difference to the nearer bound is one that the dtype holds.
        fits = np.where(old >= 0, update <= bounds.max - old, update >= bounds.min - old)
        if not fits.all():
            raise TensorError(
                f"tensor {name!r}: the base model plus the update overflows {old.dtype}"
            )


def windows(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a contiguous tensor's values in order, flat, as views of at most WINDOW values."""
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), WINDOW):
        yield flat[start : start + WINDOW]


def _describe(spec: TensorSpec) -> str:
    return f"{spec.dtype} of shape {list(spec.shape)}"
