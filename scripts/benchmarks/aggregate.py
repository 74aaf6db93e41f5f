"""Folding update files into a new model, against reading the same bytes once.

The floor sums every file's values in float64, with as many threads as the fold has; that of
the memory is the model.
"""

from __future__ import annotations

import ctypes
import statistics
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.algorithms import Algorithm, Contribution, Setting, load_algorithm
from common.encodings.plain import Plain
from common.tensors import digest_file, encode, open_mapped
from common.training import TrainConfig
from scripts.benchmarks.measurements import Figure, seconds_of
from scripts.testbed.servers import folder
from scripts.testbed.tasks import SIZES, Flat
from server.aggregation.fold import THREADS, SpooledUpdate, fold

_WINDOW = 1 << 18
_COHORT = 50
_SAMPLE_SECONDS = 0.002


def _made(name: str, **options: float) -> Algorithm:
    kind = load_algorithm(name)
    return kind(kind.Options(**options), Setting(name=name, training=TrainConfig()))


class Case(NamedTuple):
    """A model by name, how many updates, and how often it is measured."""

    model: str
    updates: int
    times: int
    name: str = "FedAvg"
    strategy: Algorithm = _made("fedavg")


_ROBUST = {
    "median": _made("median"),
    "trimmed mean": _made("trimmed-mean", trim_fraction=0.2),
    "Multi-Krum": _made("multi-krum", num_hostile=4),
}
_FULL = [
    *(Case("25M", 2, 5), Case("25M", 10, 5), Case("1.66M", 100, 5), Case("100M", 10, 3)),
    *(Case("25M", 20, 3, name, strategy) for name, strategy in _ROBUST.items()),
]
_SMALL = [
    Case("1.66M", 10, 5),
    *(Case("1.66M", 20, 2, name, strategy) for name, strategy in _ROBUST.items()),
]


def measure(small: bool) -> Iterator[Figure]:
    """Yield the bytes a second of each case, by strategy."""
    torch.set_num_threads(1)
    for case in _SMALL if small else _FULL:
        with folder() as place:
            yield _measure(case, place)
    for name, strategy in _ROBUST.items():
        with folder() as place:
            yield _memory(name, strategy, "1.66M" if small else "25M", place)


def _measure(case: Case, place: Path) -> Figure:
    files = [place / f"{number}.safetensors" for number in range(case.updates)]
    for path in files:
        path.write_bytes(encode(Flat(SIZES[case.model]).state_dict()))
    updates = [_spooled(path, 1 + index) for index, path in enumerate(files)]
    new = place / "new.safetensors"

    def aggregate() -> None:
        fold(files[0], {}, {}, updates, case.strategy, open_mapped(files[0]), Plain(), new, {})

    floors, values = [], []
    for _ in range(case.times):
        floors.append(seconds_of(lambda: _read(files)))
        values.append(seconds_of(aggregate))
    size, unit = sum(path.stat().st_size for path in files), "B/s"
    if case.name in _ROBUST:
        size, unit = SIZES[case.model] * case.updates, "values/s"
    return Figure(
        name=f"aggregate {case.name}",
        value=size / statistics.median(values),
        unit=unit,
        floor=size / statistics.median(floors),
        sizes={"parameters": SIZES[case.model], "updates": case.updates},
    )


def _memory(name: str, strategy: Algorithm, model: str, place: Path) -> Figure:
    """Measure the anonymous memory that a large cohort takes, beside the model's size."""
    first = place / "first.safetensors"
    first.write_bytes(encode(Flat(SIZES[model]).state_dict()))
    files = [place / f"{number}.safetensors" for number in range(_COHORT)]
    for path in files:
        path.hardlink_to(first)
    updates = [_spooled(path, 1) for path in files]
    # What was freed before, but not yet given back, would hide what is taken now.
    ctypes.CDLL(None).malloc_trim(0)
    rest = peak = _anonymous_memory()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_SAMPLE_SECONDS):
            peak = max(peak, _anonymous_memory())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        new, tensors = place / "new.safetensors", open_mapped(first)
        fold(first, {}, {}, updates, strategy, tensors, Plain(), new, {})
    finally:
        done.set()
        watching.join()
    return Figure(
        name=f"memory above rest, {name}",
        value=peak - rest,
        unit="B",
        floor=first.stat().st_size,
        sizes={"parameters": SIZES[model], "updates": _COHORT},
    )


def _spooled(path: Path, weight: int) -> SpooledUpdate:
    return SpooledUpdate(path, path.stem, digest_file(path), Contribution(weight, {}))


def _anonymous_memory() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def _read(files: list[Path]) -> None:
    def add(values: np.ndarray) -> None:
        np.sum(values, dtype=np.float64)

    with ThreadPoolExecutor(THREADS) as pool:
        for path in files:
            for tensor in open_mapped(path).values():
                values = tensor.numpy()
                for start in range(0, values.size, _WINDOW):
                    pool.submit(add, values[start : start + _WINDOW])
