"""Folding update files into a new model, against reading the same bytes once.

The floor sums every file's values in float64, with as many threads as the fold has.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.tensors import encode, open_mapped
from scripts.benchmarks.figures import Figure, seconds_of
from scripts.benchmarks.servers import folder
from scripts.benchmarks.tasks import SIZES, Flat
from server.folding import THREADS, WeightedUpdate, fold
from server.optimizers import Sgd

_WINDOW = 1 << 18


class Case(NamedTuple):
    """A model by name, how many updates, and how often it is measured."""

    model: str
    updates: int
    times: int


_FULL = [Case("25M", 2, 5), Case("25M", 10, 5), Case("1.66M", 100, 5), Case("100M", 10, 3)]
_SMALL = [Case("1.66M", 10, 5)]


def measure(small: bool) -> Iterator[Figure]:
    """Yield the bytes a second of each case, by strategy."""
    torch.set_num_threads(1)
    for case in _SMALL if small else _FULL:
        with folder() as place:
            yield _measure(case, place)


def _measure(case: Case, place: Path) -> Figure:
    files = [place / f"{number}.safetensors" for number in range(case.updates)]
    for path in files:
        path.write_bytes(encode(Flat(SIZES[case.model]).state_dict()))
    updates = [WeightedUpdate(path, 1 + index) for index, path in enumerate(files)]
    new = place / "new.safetensors"

    def aggregate() -> None:
        fold(files[0], None, updates, Sgd(), new, place / "velocity.safetensors")

    floors, values = [], []
    for _ in range(case.times):
        floors.append(seconds_of(lambda: _read(files)))
        values.append(seconds_of(aggregate))
    size = sum(path.stat().st_size for path in files)
    return Figure(
        name="aggregate FedAvg",
        value=size / statistics.median(values),
        unit="B/s",
        floor=size / statistics.median(floors),
        sizes={"parameters": SIZES[case.model], "updates": case.updates},
    )


def _read(files: list[Path]) -> None:
    def add(values: np.ndarray) -> None:
        np.sum(values, dtype=np.float64)

    with ThreadPoolExecutor(THREADS) as pool:
        for path in files:
            for tensor in open_mapped(path).values():
                values = tensor.numpy()
                for start in range(0, values.size, _WINDOW):
                    pool.submit(add, values[start : start + _WINDOW])
