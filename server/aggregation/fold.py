"""Folds spooled updates into a new model, window by window, from mapped files to a file.

Several windows are folded at once, and written and hashed in order: memory is a few windows,
whatever the size of the model and the number of clients. The first pass over the updates hashes
them, too: what is counted is what was accepted. The arithmetic is the algorithm's; this file only
reads and writes.
"""

import json
import math
import os
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Condition
from typing import NamedTuple, TypeVar

import torch
from blake3 import blake3
from safetensors import safe_open

from common.algorithms import Algorithm, CannotAggregate, Contribution, Notes, Plan
from common.durable import DurableFile
from common.encodings import Encoding
from common.errors import RunFailed, TensorError
from common.tensors import WINDOW, Digest, Schema, open_mapped, specs

# Folding at once; more would wait for memory, not for processors.
THREADS = min(4, os.cpu_count() or 1)
# Windows that wait for their turn to be written.
_AHEAD = 2 * THREADS
# Of an algorithm, in characters of JSON.
_MOST_NOTES = 1 << 16


Tensors = Mapping[str, torch.Tensor]
# A window of the new model, and of each tensor that the algorithm keeps.
Window = tuple[torch.Tensor, Mapping[str, torch.Tensor]]
R = TypeVar("R")


class Overflow(CannotAggregate):
    """The updates, each finite, make values that are not."""


class DamagedUpdate(TensorError):
    """An update's file is not what was accepted."""


class SpooledUpdate(NamedTuple):
    """An update's file, whose it is, and what the algorithm knows of it beside its values."""

    path: Path
    client_id: str
    digest: Digest
    contribution: Contribution


class Folded(NamedTuple):
    """The digests of the new model and of what the algorithm keeps, and each update's share."""

    model: Digest
    state: Mapping[str, Digest]
    notes: Notes
    shares: Sequence[float | None]


def fold(
    base: Path,
    state: Mapping[str, Path],
    notes: Notes,
    updates: Sequence[SpooledUpdate],
    algorithm: Algorithm,
    trained: Container[str],
    encoding: Encoding,
    new_model: Path,
    new_state: Mapping[str, Path],
) -> Folded:
    """Write the new model and what the algorithm keeps; return their digests.

    Trained tensors take the server optimizer's step. Others (such as BatchNorm's statistics) change
    by what the algorithm makes of the updates (`Algorithm.mean`), rounded where they are integers.
    All files are durable on return. The result depends on the order of `updates`, so callers pass
    them in client_id order. Integers of the base plus those of any update must be within their
    dtype.

    Args:
        base: the global model, a safetensors file.
        state: what the algorithm kept in the round before, by name, files of the model's schema.
        notes: what it kept beside them.
        updates: at least one, each of the model's schema.
        algorithm: combines the updates.
        trained: the names of the tensors that are.
        encoding: how the updates are laid out.
        new_model: where the new model goes.
        new_state: where what the algorithm keeps goes, by name; more names than it has are fine.

    Raises:
        CannotAggregate: the updates are not what the algorithm needs, or a new value does not fit
            its dtype.
        DamagedUpdate: an update is not what its digest says.
        TensorError: another file is damaged.
        OSError: a file can't be written.
    """
    model = open_mapped(base)
    schema = specs(model)
    inputs = _Inputs(
        model=model,
        state={name: open_mapped(path) for name, path in state.items()},
        updates=[_Update(update, encoding, schema) for update in updates],
        algorithm=algorithm,
        trained=trained,
    )
    places = _places(base, model)
    measured = None
    if algorithm.measures:
        floats = [place for place in places if model[place.name].is_floating_point()]
        for part in _in_order(inputs.measure_window, floats):
            measured = part if measured is None else measured + part
        inputs.check_digests()
    plan = algorithm.plan([update.contribution for update in updates], measured, notes)
    plan = plan._replace(notes=_as_kept(plan.notes))
    try:
        return _write(inputs, plan, places, base, new_model, new_state)
    except CannotAggregate:
        # Values that were not accepted are no reason to blame those that were.
        inputs.check_digests()
        raise


def _write(
    inputs: "_Inputs",
    plan: Plan,
    places: Sequence["_Place"],
    base: Path,
    new_model: Path,
    new_state: Mapping[str, Path],
) -> Folded:
    with ExitStack() as stack:
        model = stack.enter_context(_Output(new_model, base, inputs.model))
        kept = {
            name: stack.enter_context(_Output(new_state[name], base, inputs.model))
            for name in inputs.algorithm.state_names
        }
        for values, tensors in _in_order(partial(inputs.fold_window, plan), places):
            model.write(values)
            for name, output in kept.items():
                output.write(tensors[name])
    inputs.check_digests()
    state = {name: output.digest for name, output in kept.items()}
    return Folded(model.digest, state, plan.notes, plan.shares)


def _as_kept(notes: Notes) -> Notes:
    """Return notes as they are read again after a restart.

    Raises:
        RunFailed: they are too large, or JSON can't hold them.
    """
    try:
        text = json.dumps(dict(notes), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RunFailed(f"--strategy: its notes are not JSON: {error}") from error
    if len(text) > _MOST_NOTES:
        raise RunFailed(f"--strategy: its notes have {len(text)} characters; keep {_MOST_NOTES}")
    kept: Notes = json.loads(text)
    return kept


class _Place(NamedTuple):
    """A window: its tensor, its first value, and how many bytes of the model come after it."""

    name: str
    start: int
    left: int


def _places(base: Path, model: Tensors) -> list[_Place]:
    """Return the model's windows in the order of their offsets."""
    places, left = [], sum(tensor.nbytes for tensor in model.values())
    with safe_open(base, framework="pt") as file:
        for name in file.offset_keys():
            for start in range(0, model[name].numel(), WINDOW):
                left -= _window(model, name, start).nbytes
                places.append(_Place(name, start, left))
    return places


class _Update:
    """An update, and the hash of its file as far as it was read.

    Raises:
        DamagedUpdate: it has not the model's tensors.
    """

    def __init__(self, update: SpooledUpdate, encoding: Encoding, schema: Schema) -> None:
        self._update = update
        try:
            self.window = encoding.open(update.path, schema).window
        except TensorError as error:
            raise self._damaged() from error
        size, path = update.path.stat().st_size, str(update.path)
        self._bytes = torch.from_file(path, size=size, dtype=torch.uint8).numpy().data
        self._hash = blake3()
        self._hashed = 0
        self._next = 0
        self._turn = Condition()

    def read_to(self, number: int, left: int) -> None:
        """Hash on, when it is the turn of this window, until so many bytes are left.

        Windows of one file take turns, those of several are hashed at once. A file whose tensors
        lie in another order than the model's is hashed in its own.
        """
        with self._turn:
            self._turn.wait_for(lambda: self._next == number)
            self._hash_to(max(self._hashed, len(self._bytes) - left))
            self._next += 1
            self._turn.notify_all()

    def check_digest(self) -> None:
        """Check the whole file; again is fine."""
        self._hash_to(len(self._bytes))
        if Digest(self._hash.hexdigest(), self._hashed) != self._update.digest:
            raise self._damaged()

    def _hash_to(self, end: int) -> None:
        self._hash.update(self._bytes[self._hashed : end])
        self._hashed = end

    def _damaged(self) -> DamagedUpdate:
        path, client = self._update.path, self._update.client_id
        return DamagedUpdate(f"{path}: the update of client {client!r} is not what was accepted")


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What is folded: mapped tensors by name."""

    model: Tensors
    state: Mapping[str, Tensors]
    updates: Sequence[_Update]
    algorithm: Algorithm
    trained: Container[str]

    def measure_window(self, number: int, place: _Place) -> torch.Tensor:
        """Return what the algorithm finds out about a window before it plans."""
        return self.algorithm.measure(self._windows(number, place, first=True))

    def fold_window(self, plan: Plan, number: int, place: _Place) -> Window:
        """Return the new values of a window, and of what the algorithm keeps."""
        algorithm, (name, start, _) = self.algorithm, place
        window = _window(self.model, name, start)
        updates = self._windows(number, place, first=not algorithm.measures)
        if name not in self.trained:
            value = window.double() + algorithm.mean(updates, plan)
            value = value if window.is_floating_point() else value.round()
            none = {kept: torch.zeros_like(window) for kept in algorithm.state_names}
            return _cast(value, window.dtype, name), none
        before = {
            kept: _window(tensors, name, start).double() for kept, tensors in self.state.items()
        }
        value, state = algorithm.apply(window, updates, plan, before)
        return _cast(value, window.dtype, name), {
            kept: _cast(tensor, window.dtype, name) for kept, tensor in state.items()
        }

    def check_digests(self) -> None:
        """Check that all updates are what was accepted.

        Raises:
            DamagedUpdate: names the first that is not.
        """
        for update in self.updates:
            update.check_digest()

    def _windows(self, number: int, place: _Place, *, first: bool) -> list[torch.Tensor]:
        """Return a window of each update; in the first pass they are hashed."""
        if first:
            for update in self.updates:
                update.read_to(number, place.left)
        return [update.window(place.name, place.start) for update in self.updates]


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


def _in_order(work: Callable[[int, _Place], R], places: Sequence[_Place]) -> Iterator[R]:
    """Yield all windows' results in the order of `places`, while the next ones are worked on.

    Each is begun after those before it, so that it may wait for them.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(THREADS, "fold") as pool:
        for number, place in enumerate(places):
            waiting.append(pool.submit(work, number, place))
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
