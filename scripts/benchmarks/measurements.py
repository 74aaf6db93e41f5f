"""A measured figure beside its floor, and how figures are shown: a table, or JSON lines.

Knows nothing about what is measured.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scripts.text import size

_SCALES = {
    "s": [(1.0, "s", 2), (1e-3, "ms", 1)],
    "values/s": [(1e6, "M values/s", 0)],
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One result. `floor` has the same unit: what the bare work costs, in the same run."""

    name: str
    value: float
    unit: str
    floor: float | None = None
    # What was measured, e.g. the model's parameters and the clients.
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Return value / floor."""
        return self.value / self.floor if self.floor else None

    def as_json(self) -> str:
        """Return one line of JSON."""
        ratio = None if self.ratio is None else round(self.ratio, 4)
        head = {"name": self.name, "value": self.value, "unit": self.unit}
        return json.dumps({**head, "floor": self.floor, "ratio": ratio, **self.sizes})


def seconds_of(run: Callable[[], object]) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def show(figures: Iterable[Figure], as_json: bool) -> None:
    """Print each figure as it comes; a table needs them all first."""
    if as_json:
        for figure in figures:
            print(figure.as_json(), flush=True)
        return
    table = Table("figure", "sizes", "value", "floor", "ratio")
    for figure in figures:
        sizes = ", ".join(f"{_short(size)} {name}" for name, size in figure.sizes.items())
        floor = "" if figure.floor is None else _human(figure.floor, figure.unit)
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        value = _human(figure.value, figure.unit)
        table.add_row(figure.name, sizes, value, floor, ratio)
        print(f"{figure.name} ({sizes}): {value}", file=sys.stderr)
    console = Console()
    console.print(table)
    console.print(machine())


def machine() -> str:
    """Return this machine in a line: processor, cores, memory, system, Python."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


def _human(value: float, unit: str) -> str:
    if unit in ("B", "B/s"):
        return size(value) + unit.removeprefix("B")
    for scale, name, digits in _SCALES.get(unit, []):
        if value >= scale:
            return f"{value / scale:.{digits}f} {name}"
    return f"{value:.3g} {unit}".strip()


def _short(size: int) -> str:
    for scale, suffix in ((10**6, " M"), (10**3, " k")):
        if size >= scale:
            return f"{size / scale:.3g}{suffix}"
    return str(size)
