"""Folds spooled updates into a new model, window by window, from mapped files to a file.

Several windows are folded at once, and written and hashed in order: memory is a few windows,
whatever the size of the model and the number of clients. The arithmetic is the strategy's; this
file only reads and writes.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from blake3 import blake3
from safetensors import safe_open

from common.durable import DurableFile
from common.tensors import WINDOW, Digest, open_mapped
from server.strategies.base import CannotAggregate, Contribution, Plan, Strategy

# Folding at once; more would wait for memory, not for processors.
THREADS = min(4, os.cpu_count() or 1)
# Windows that wait for their turn to be written.
_AHEAD = 2 * THREADS


Tensors = Mapping[str, torch.Tensor]
# A window of the new model, and of each tensor that the strategy keeps.
Window = tuple[torch.Tensor, Mapping[str, torch.Tensor]]
R = TypeVar("R")


class Overflow(CannotAggregate):
    """The updates, each finite, make values that are not."""


class SpooledUpdate(NamedTuple):
    """An update's file, and what the strategy knows of it beside its values."""

    path: Path
    contribution: Contribution


class Folded(NamedTuple):
    """The digests of the new model and of what the strategy keeps, and each update's share."""

    model: Digest
    state: Mapping[str, Digest]
    shares: Sequence[float | None]


def fold(
    base: Path,
    state: Mapping[str, Path],
    updates: Sequence[SpooledUpdate],
    strategy: Strategy,
    trained: Container[str],
    new_model: Path,
    new_state: Mapping[str, Path],
) -> Folded:
    """Write the new model and what the strategy keeps; return their digests.

    Trained tensors take the server optimizer's step. Others (such as BatchNorm's statistics) change
    by what the strategy makes of the updates (`Strategy.mean`), rounded where they are integers.
    All files are durable on return. The result depends on the order of `updates`, so callers pass
    them in client_id order. Integers of the base plus those of any update must be within their
    dtype.

    Args:
        base: the global model, a safetensors file.
        state: what the strategy kept in the round before, by name, files of the model's schema.
        updates: at least one, each of the model's schema.
        strategy: combines the updates.
        trained: the names of the tensors that are.
        new_model: where the new model goes.
        new_state: where what the strategy keeps goes, by name; more names than it has are fine.

    Raises:
        CannotAggregate: the updates are not what the strategy needs, or a new value does not fit
            its dtype.
        TensorError: a file is damaged.
        OSError: a file can't be written.
    """
    inputs = _Inputs(
        model=open_mapped(base),
        state={name: open_mapped(path) for name, path in state.items()},
        updates=[open_mapped(update.path) for update in updates],
        strategy=strategy,
        trained=trained,
    )
    with safe_open(base, framework="pt") as file:
        places = [
            (name, start)
            for name in file.offset_keys()
            for start in range(0, inputs.model[name].numel(), WINDOW)
        ]
    measured = None
    if strategy.measures:
        floats = [place for place in places if inputs.model[place[0]].is_floating_point()]
        for part in _in_order(inputs.measure_window, floats):
            measured = part if measured is None else measured + part
    plan = strategy.plan([update.contribution for update in updates], measured)
    with ExitStack() as stack:
        model = stack.enter_context(_Output(new_model, base, inputs.model))
        kept = {
            name: stack.enter_context(_Output(new_state[name], base, inputs.model))
            for name in strategy.state_names
        }
        for values, tensors in _in_order(partial(inputs.fold_window, plan), places):
            model.write(values)
            for name, output in kept.items():
                output.write(tensors[name])
    return Folded(model.digest, {name: output.digest for name, output in kept.items()}, plan.shares)


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What is folded: mapped tensors by name."""

    model: Tensors
    state: Mapping[str, Tensors]
    updates: Sequence[Tensors]
    strategy: Strategy
    trained: Container[str]

    def measure_window(self, name: str, start: int) -> torch.Tensor:
        """Return what the strategy finds out about a window before it plans."""
        return self.strategy.measure([_window(update, name, start) for update in self.updates])

    def fold_window(self, plan: Plan, name: str, start: int) -> Window:
        """Return the new values of a window, and of what the strategy keeps."""
        strategy = self.strategy
        window = _window(self.model, name, start)
        updates = [_window(update, name, start) for update in self.updates]
        if name not in self.trained:
            value = window.double() + strategy.mean(updates, plan)
            value = value if window.is_floating_point() else value.round()
            none = {kept: torch.zeros_like(window) for kept in strategy.state_names}
            return _cast(value, window.dtype, name), none
        before = {
            kept: _window(tensors, name, start).double() for kept, tensors in self.state.items()
        }
        value, state = strategy.apply(window, updates, plan, before)
        return _cast(value, window.dtype, name), {
            kept: _cast(tensor, window.dtype, name) for kept, tensor in state.items()
        }


def _window(tensors: Tensors, name: str, start: int) -> torch.Tensor:
    return tensors[name].view(-1)[start : start + WINDOW]


def _cast(values: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    if dtype.is_floating_point:
        result = values.to(dtype)
        if not bool(torch.isfinite(torch.stack(torch.aminmax(result))).all()):
            raise Overflow(
                f"tensor {name!r} of the new model overflows {dtype}; --max-update-norm refuses "
                "such updates"
            )
        return result
    # No mean leaves the range that each update stays in, but its rounding may, next to the end.
    bounds = torch.iinfo(dtype)
    largest = float(bounds.max)
    if int(largest) > bounds.max:
        largest = math.nextafter(largest, 0.0)
    return values.clamp(float(bounds.min), largest).to(dtype)


def _in_order(work: Callable[[str, int], R], places: Iterable[tuple[str, int]]) -> Iterator[R]:
    """Yield all windows' results in the order of `places`, while the next ones are worked on."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(THREADS, "fold") as pool:
        for name, start in places:
            waiting.append(pool.submit(work, name, start))
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
