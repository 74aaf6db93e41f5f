"""What experiments write: JSON lines as they come, Markdown tables, and curves by round.

Knows nothing about how a result came to be.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One plot: lines of (x, y) by their label, and horizontal lines to compare them with.

    `repeats` are further lines of a label, such as other seeds'. Of the y axis, what is below
    `lowest` is cut off.
    """

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    repeats: Mapping[str, Sequence[Sequence[tuple[float, float]]]] | None = None
    x_label: str = "round"
    y_label: str = "test accuracy"
    levels: Mapping[str, float] | None = None
    lowest: float | None = None


def read_results(path: Path) -> list[Result]:
    """Return the lines of a results file; none if there is no file yet."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def append_result(path: Path, result: Result) -> None:
    """Add one line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table whose columns are as wide as their widest cell; None is a dash."""
    cells = [[*head], *(["–" if cell is None else str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in padded) + "\n"


def plot(path: Path, panels: Sequence[Panel], columns: int = 3) -> None:
    """Draw the panels, side by side, into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    height = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.8 * height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(height, columns, squeeze=False).flat)
    for axis, panel in zip(axes, panels, strict=False):
        for label, line in panel.lines.items():
            (drawn,) = axis.plot(*zip(*line, strict=True), label=label, linewidth=1.4)
            for other in (panel.repeats or {}).get(label, ()):
                color = drawn.get_color()
                axis.plot(*zip(*other, strict=True), color=color, linewidth=0.9, alpha=0.6)
        for (label, level), style in zip((panel.levels or {}).items(), cycle(("--", ":"))):
            axis.axhline(level, label=label, color="black", linestyle=style, linewidth=1)
        axis.set_ylim(bottom=panel.lowest)
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel(panel.x_label)
        axis.set_ylabel(panel.y_label)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="best")
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=110)
