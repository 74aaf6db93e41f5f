"""Folds spooled updates into a new model, window by window, from mapped files to a file.

Several windows are folded at once, and written and hashed in order: memory is a few windows,
whatever the size of the model and the number of clients. The arithmetic is `aggregation`'s and
`optimizers'`; this file only reads and writes.
"""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from blake3 import blake3
from safetensors import safe_open

from common.errors import FolkmootError
from common.tensors import WINDOW, Digest, open_mapped
from server.aggregation import weighted_mean
from server.durable import DurableFile
from server.optimizers import Sgd

# Folding at once; more would wait for memory, not for processors.
THREADS = min(4, os.cpu_count() or 1)
# Windows that wait for their turn to be written.
_AHEAD = 2 * THREADS


Window = tuple[torch.Tensor, torch.Tensor | None]


class Overflow(FolkmootError):
    """The updates, each finite, make values that are not."""


class WeightedUpdate(NamedTuple):
    """An update's file, and its weight in the mean."""

    path: Path
    weight: float


class Folded(NamedTuple):
    """The digests of the new model and, if there is momentum, of its velocity."""

    model: Digest
    velocity: Digest | None


def fold(
    base: Path,
    velocity: Path | None,
    updates: Sequence[WeightedUpdate],
    optimizer: Sgd,
    new_model: Path,
    new_velocity: Path,
) -> Folded:
    """Write the new model, and its velocity if there is momentum; return their digests.

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
        Overflow: a new value does not fit its dtype.
        TensorError: a file is damaged.
        OSError: a file can't be written.
    """
    inputs = _Inputs(
        model=open_mapped(base),
        velocity=open_mapped(velocity) if velocity else {},
        updates=[open_mapped(update.path) for update in updates],
        weights=[update.weight for update in updates],
        optimizer=optimizer,
    )
    with safe_open(base, framework="pt") as file:
        names = file.offset_keys()
    with ExitStack() as stack:
        model = stack.enter_context(_Output(new_model, base, inputs.model))
        moved = None
        if optimizer.momentum:
            moved = stack.enter_context(_Output(new_velocity, base, inputs.model))
        for values, step in _in_order(inputs, names):
            model.write(values)
            if moved is not None and step is not None:
                moved.write(step)
    return Folded(model.digest, moved.digest if moved is not None else None)


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What is folded: mapped tensors by name, and the updates' weights."""

    model: Mapping[str, torch.Tensor]
    velocity: Mapping[str, torch.Tensor]
    updates: Sequence[Mapping[str, torch.Tensor]]
    weights: Sequence[float]
    optimizer: Sgd

    def fold_window(self, name: str, start: int) -> Window:
        """Return the new values of a window, and its velocity if there is momentum."""

        def window_of(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return tensors[name].view(-1)[start : start + WINDOW]

        window = window_of(self.model)
        mean = weighted_mean([window_of(update) for update in self.updates], self.weights)
        if window.is_floating_point():
            old = window_of(self.velocity).double() if name in self.velocity else None
            value, step = self.optimizer.apply(window, mean, old)
        else:
            value, step = (window.double() + mean).round(), mean
        velocity = _cast(step, window.dtype, name) if self.optimizer.momentum else None
        return _cast(value, window.dtype, name), velocity


def _cast(values: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    if dtype.is_floating_point:
        result = values.to(dtype)
        fits = bool(torch.isfinite(torch.stack(torch.aminmax(result))).all())
    else:
        result, bounds = values.to(dtype), torch.iinfo(dtype)
        fits = all(bounds.min <= int(x) <= bounds.max for x in torch.aminmax(values))
    if not fits:
        raise Overflow(f"tensor {name!r} of the new model overflows {dtype}")
    return result


def _in_order(inputs: _Inputs, names: Sequence[str]) -> Iterator[Window]:
    """Yield all windows' results in the file's order, while the next ones are being folded."""
    waiting: deque[Future[Window]] = deque()
    with ThreadPoolExecutor(THREADS, "fold") as pool:
        for name in names:
            for start in range(0, inputs.model[name].numel(), WINDOW):
                waiting.append(pool.submit(inputs.fold_window, name, start))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Output:
    """A safetensors file with the header of another one, filled in the order of its offsets."""

    def __init__(self, path: Path, like: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        values = sum(tensor.nbytes for tensor in tensors.values())
        self._size = like.stat().st_size
        self._hash = blake3()
        self._offset = 0
        self._file = DurableFile(path, self._size)
        with like.open("rb") as file:
            self._write(memoryview(file.read(self._size - values)))

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self._file.sync()
        self._file.close()

    @property
    def digest(self) -> Digest:
        return Digest(self._hash.hexdigest(), self._size)

    def write(self, values: torch.Tensor) -> None:
        self._write(values.view(torch.uint8).numpy().data)

    def _write(self, data: memoryview) -> None:
        self._file.write_at(self._offset, data)
        self._hash.update(data)
        self._offset += len(data)
