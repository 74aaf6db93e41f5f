"""Folds spooled updates into a new model, window by window, from mapped files to a file.

Memory is a few windows, whatever the size of the model and the number of clients. The
arithmetic is `aggregation`'s and `optimizers'`; this file only reads and writes.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, NamedTuple

import torch
from safetensors import safe_open

from common.tensors import Digest, open_mapped, windows
from server.aggregation import weighted_mean
from server.optimizers import Sgd


class WeightedUpdate(NamedTuple):
    """An update's file and its num_examples."""

    path: Path
    num_examples: int


def fold(
    base: Path,
    velocity: Path | None,
    updates: Sequence[WeightedUpdate],
    optimizer: Sgd,
    new_model: Path,
    new_velocity: Path,
) -> Digest:
    """Write the new model, and its velocity if there is momentum; return the model's digest.

    Floating-point tensors take the optimizer's step. Others (counters, such as BatchNorm's)
    take the plain mean, rounded. Both files are durable on return. The result depends on
    the order of `updates`, so callers pass them in client_id order.

    Args:
        base: the global model, a safetensors file.
        velocity: the momentum of the round before, of the model's schema; None is 0.
        updates: at least one, each of the model's schema.
        optimizer: takes the mean update.
        new_model: where the new model goes.
        new_velocity: where the new momentum goes, if the optimizer has one.

    Raises:
        TensorError: a file is damaged.
        OSError: a file can't be written.
    """
    model = open_mapped(base)
    before = open_mapped(velocity) if velocity else {}
    tensors = [open_mapped(update.path) for update in updates]
    counts = [update.num_examples for update in updates]
    with safe_open(base, framework="pt") as file:
        names = file.offset_keys()
    with (
        _Output(new_model, base, model) as out,
        _Output(new_velocity, base, model) if optimizer.momentum else nullcontext() as out_velocity,
    ):
        for name in names:
            parts = [windows(update[name]) for update in tensors]
            old = windows(before[name]) if name in before else None
            for window, *shares in zip(windows(model[name]), *parts, strict=True):
                mean = weighted_mean(shares, counts)
                if window.is_floating_point():
                    start = None if old is None else next(old).double()
                    value, moved = optimizer.apply(window, mean, start)
                else:
                    value, moved = (window.double() + mean).round(), mean
                out.write(value.to(window.dtype))
                if out_velocity is not None:
                    out_velocity.write(moved.to(window.dtype))
    return out.digest


class _Output:
    """A safetensors file with the header of another one, filled in the order of its offsets."""

    def __init__(self, path: Path, like: Path, tensors: dict[str, torch.Tensor]) -> None:
        values = sum(tensor.nbytes for tensor in tensors.values())
        self._size = like.stat().st_size
        self._hash = hashlib.sha256()
        self._file: IO[bytes] = path.open("wb")
        with like.open("rb") as file:
            self._write(file.read(self._size - values))

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    @property
    def digest(self) -> Digest:
        return Digest(self._hash.hexdigest(), self._size)

    def write(self, values: torch.Tensor) -> None:
        self._write(values.view(torch.uint8).numpy().data)

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
