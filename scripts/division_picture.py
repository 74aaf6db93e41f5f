"""Draws the examples of each partition, by class where there are classes.

Few partitions are bars; many are a skyline of their sizes over a map of their classes.
Knows nothing about tasks or how the data is divided.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

Counts = NDArray[np.int64]

# From nothing to blue: on a light page and on a dark one.
SHADES = LinearSegmentedColormap.from_list("shades", ["#2f7fd600", "#2f7fd6"])

_THOUSANDS = StrMethodFormatter("{x:,.0f}")
_MOST_BARS = 30
_MOST_COLOURS = 20


def draw(
    names: Sequence[str],
    sizes: Counts,
    counts: Counts | None,
    title: str,
    classes: Sequence[str] = (),
    noun: str = "partition",
) -> Figure:
    """Return the picture.

    Args:
        names: of the partitions.
        sizes: shape [partitions], the examples of each.
        counts: shape [partitions, classes], the examples of each class; None: no classes.
        title: stands above.
        classes: their names; without them, a class is its number.
        noun: what a partition is called.
    """
    if counts is None:
        classes = ()
    elif len(classes) != counts.shape[1]:
        classes = [str(number) for number in range(counts.shape[1])]
    few = len(sizes) <= _MOST_BARS and len(classes) <= _MOST_COLOURS
    height = 1.5 + 0.3 * len(sizes) if few else 5.5 if counts is not None else 3.5
    figure = Figure(figsize=(9, max(height, 2.5)), layout="constrained")
    # Names are text, whatever they hold; a dollar sign begins no formula.
    with mpl.rc_context({"text.parse_math": False}):
        figure.suptitle(title, fontsize=10)
        if few:
            axes = figure.subplots()
            _draw_bars(axes, names, sizes, counts, classes)
            axes.set_ylabel(noun)
        elif counts is None:
            axes = figure.subplots()
            _draw_skyline(axes, sizes)
            axes.set_xlabel(noun)
        else:
            above, below = figure.subplots(2, sharex=True, height_ratios=[1, 2])
            _draw_skyline(above, sizes)
            _draw_map(below, sizes, counts, classes)
            below.set_xlabel(noun)
    return figure


def _draw_bars(
    axes: Axes, names: Sequence[str], sizes: Counts, counts: Counts | None, classes: Sequence[str]
) -> None:
    where = np.arange(len(sizes))
    if counts is None:
        axes.barh(where, sizes)
    else:
        colours = mpl.colormaps["tab10" if counts.shape[1] <= 10 else "tab20"]
        left = np.zeros_like(sizes)
        for number, (label, column) in enumerate(zip(classes, counts.T, strict=True)):
            axes.barh(where, column, left=left, label=label, color=colours(number))
            left += column
        axes.figure.legend(title="class", loc="outside right center", frameon=False)
    for place, size in zip(where, sizes, strict=True):
        axes.annotate(
            f"{size:,}", (size, place), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.margins(x=0.08, y=0.02)
    axes.set_yticks(where, names)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(_THOUSANDS)
    axes.set_xlabel("examples")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_skyline(axes: Axes, sizes: Counts) -> None:
    edges = np.arange(len(sizes) + 1) - 0.5
    axes.stairs(sizes, edges, fill=True)
    axes.yaxis.set_major_formatter(_THOUSANDS)
    axes.set(ylabel="examples", xlim=(edges[0], edges[-1]))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_map(axes: Axes, sizes: Counts, counts: Counts, classes: Sequence[str]) -> None:
    image = axes.imshow(
        (counts / sizes[:, None]).T, aspect="auto", interpolation="nearest", cmap=SHADES, vmin=0
    )
    axes.set_ylabel("class")
    if counts.shape[1] <= _MOST_COLOURS:
        axes.set_yticks(np.arange(counts.shape[1]), classes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    bar = axes.figure.colorbar(image, ax=axes, format=PercentFormatter(1, 0))
    bar.set_label("share of the\npartition's examples")
