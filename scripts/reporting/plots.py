"""The plots of a report. Each is drawn once, and saved for paper (PNG) and for a page (SVG).

Knows nothing about files but those that it writes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from scripts.division_picture import SHADES, draw
from scripts.reporting.facts import Facts
from scripts.summary import Numbers, own_names
from server.storage.columns import MEASURED, MEASURES, VIEWS, columns

# In an SVG it becomes the colour of the text around it, in the light and in the dark.
_INK = "#20242b"
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _INK,
    "axes.facecolor": "none",
    "axes.grid": False,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlecolor": _INK,
    "figure.facecolor": "white",
    "font.size": 9,
    "grid.alpha": 0.15,
    "grid.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.labelcolor": _INK,
    # The same run gives the same bytes.
    "svg.hashsalt": "report",
    # Text stays text, which a reader can search and copy.
    "svg.fonttype": "none",
    # Names are text, whatever they hold; a dollar sign begins no formula.
    "text.parse_math": False,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE = "#3f86d2", "#e08e2b", "#3da06a", "#d5545f", "#9a70d0"
_LINES = {"global": (_BLUE, "-"), "client_mean": (_ORANGE, "-"), "train": (_GREEN, ":")}
# By column: its label and colour.
_OUTCOMES, _PHASES = (
    {
        column.name: (column.label, colour)
        for column, colour in zip(columns(group=group), cycle(colours), strict=False)
    }
    for group, colours in (
        ("outcome", (_BLUE, _ORANGE, _RED)),
        ("phase", (_BLUE, _GREEN, _ORANGE, _PURPLE)),
    )
)
# Up to so many, each client has a bar with its name, each round a mark, each cell its number.
_MOST_BARS, _MOST_MARKS, _MOST_CELLS = 30, 30, 20
# Of the task's own metrics.
_MOST_PANELS = 4


def draw_all(facts: Facts) -> dict[str, Figure]:
    """Return the plots for which there is something to show, by name."""
    plots: dict[str, Callable[[Facts], Figure | None]] = {
        "convergence": _convergence,
        "metrics": _own,
        "confusion": _confusion,
        "participation": _participation,
        "split": _split,
        "seconds": _seconds,
    }
    with mpl.rc_context(_STYLE):
        drawn = {name: plot(facts) for name, plot in plots.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save(figure: Figure, path: Path) -> str:
    """Write a PNG and return the same plot as an SVG element that needs nothing around it.

    Raises:
        OSError: it can't be written.
    """
    text = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A script that matplotlib's font lacks; a reader's browser may have it.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, dpi=150)
        # It is laid out, which takes longest.
        figure.set_layout_engine("none")
        figure.savefig(text, format="svg", dpi=150, transparent=True, metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Several stand in one page: what no other part refers to needs no id.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', _svg_begin, svg)


def _svg_begin(match: re.Match[str]) -> str:
    return f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" role="img" {match[1]}>'


def _panels(count: int, height: float = 3.4, width: float = 4.5) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False).flat)


def _column(rows: Sequence[Numbers], name: str) -> tuple[list[float], list[float]]:
    """Return the rounds that have a value, and the values."""
    there = [row for row in rows if name in row]
    return [row["round"] for row in there], [row[name] for row in there]


def _by_round(axes: Axes, title: str, y_label: str) -> None:
    axes.set(title=title, xlabel="round", ylabel=y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")


def _convergence(facts: Facts) -> Figure | None:
    measures = [
        measure
        for measure in MEASURES
        if any(_column(facts.rows, MEASURED[measure, view].name)[0] for view in _views(measure))
    ]
    if not measures:
        return None
    figure, panels = _panels(len(measures), 3.8, width=4.5 if len(measures) > 1 else 6)
    for axes, measure in zip(panels, measures, strict=True):
        _measure(axes, facts, measure)
        _by_round(axes, measure.capitalize(), measure)
    shown: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=3)
    return figure


def _views(measure: str) -> list[str]:
    """Return of whom a measure is drawn as a line."""
    return [view for view in _LINES if (measure, view) in MEASURED]


def _measure(axes: Axes, facts: Facts, measure: str) -> None:
    """Draw the server's and the clients' values, and the clients' spread as a band."""
    rows = facts.rows
    low, tenth, high = (MEASURED.get((measure, f"client_{end}")) for end in ("min", "p10", "max"))
    highest = lowest = 0.0
    for view in _views(measure):
        rounds, values = _column(rows, MEASURED[measure, view].name)
        colour, dash = _LINES[view]
        label = VIEWS[view]
        if values:
            mark = "." if len(rounds) <= _MOST_MARKS else None
            axes.plot(rounds, values, dash, color=colour, label=label, marker=mark, linewidth=1.5)
            highest, lowest = max(highest, *values), min(lowest, *values)
    spread = [row for row in rows if low and high and {low.name, high.name} <= row.keys()]
    if low and high and spread:
        label = "clients, lowest to highest"
        rounds, bottom, top = (
            [row[name] for row in spread] for name in ("round", low.name, high.name)
        )
        axes.fill_between(rounds, bottom, top, color=_ORANGE, alpha=0.18, linewidth=0, label=label)
    if tenth and tenth.better == "higher" and _column(rows, tenth.name)[0]:
        axes.plot(
            *_column(rows, tenth.name), "--", color=_ORANGE, linewidth=0.9, label=VIEWS[tenth.view]
        )
    best = facts.best
    value = facts.of(best)
    if facts.best_is_known and measure == facts.measure and value is not None:
        label = f"best, {value:.4f} in round {best['round']}"
        axes.plot(best["round"], value, "o", color=_INK, markersize=5, label=label)
    if measure == "loss":
        # One client's huge loss must not hide all the rest.
        axes.set_ylim(1.1 * lowest, 1.1 * highest or None)
        return
    if (target := facts.options.get("target_accuracy")) and isinstance(target, float):
        axes.axhline(target, color=_INK, linestyle="--", linewidth=0.7, label=f"target, {target:g}")


def _own(facts: Facts) -> Figure | None:
    """Draw the task's own metrics, those of a name in one panel."""
    sides = {"global": (_BLUE, VIEWS["global"]), "client": (_ORANGE, VIEWS["client_mean"])}
    names = dict.fromkeys(name.partition("_")[2] for name in own_names(facts.rows))
    if not names:
        return None
    shown = list(names)[:_MOST_PANELS]
    figure, panels = _panels(len(shown), 3.4, width=4.5 if len(shown) > 1 else 6)
    for axes, name in zip(panels, shown, strict=True):
        for side, (colour, label) in sides.items():
            rounds, values = _column(facts.rows, f"{side}_{name}")
            if values:
                mark = "." if len(rounds) <= _MOST_MARKS else None
                axes.plot(rounds, values, color=colour, label=label, marker=mark, linewidth=1.5)
        axes.legend()
        _by_round(axes, _short(name.replace("_", " ")), "value")
    return figure


def _confusion(facts: Facts) -> Figure | None:
    if facts.by_class is None:
        return None
    _, names, confusion = facts.by_class
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    few = len(names) <= _MOST_CELLS
    side = max(4.0, 1.8 + 0.36 * len(names)) if few else 6.0
    figure, (axes,) = _panels(1, height=side, width=side + 0.7)
    # A square root, so that a few mistakes show, too.
    image = axes.imshow(shares, SHADES, PowerNorm(0.5, 0, 1), interpolation="nearest")
    if few:
        for (row, column), share in np.ndenumerate(shares):
            if confusion[row, column]:
                colour = "white" if share > 0.4 else _INK
                text = f"{confusion[row, column]}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
        axes.set_xticks(range(len(names)), names)
        if max(map(len, names)) > 3:
            axes.tick_params("x", rotation=90)
        axes.set_yticks(range(len(names)), names)
    axes.spines[:].set(visible=True, alpha=0.25)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted class", ylabel="true class")
    bar = figure.colorbar(image, ax=axes, format=PercentFormatter(1, 0), shrink=0.8)
    bar.set_label("share of the true class's examples")
    bar.outline.set_visible(False)
    return figure


def _stack(axes: Axes, rows: Sequence[Numbers], columns: Mapping[str, tuple[str, str]]) -> None:
    """Draw columns, each by its label and colour, one on the other, a step a round."""
    rounds = np.array([row["round"] for row in rows])
    edges = (rounds[:, None] + [-0.5, 0.5]).ravel()
    base = np.zeros(len(rounds))
    for name, (label, colour) in columns.items():
        values = np.array([row.get(name, 0.0) for row in rows])
        if values.any() and len(rounds) <= _MOST_MARKS:
            axes.bar(rounds, values, 0.86, base, color=colour, label=label)
        elif values.any():
            low, high = np.repeat(base, 2), np.repeat(base + values, 2)
            axes.fill_between(edges, low, high, color=colour, linewidth=0, label=label)
        base += values
    axes.set_xlim(edges[0], edges[-1])


def _participation(facts: Facts) -> Figure | None:
    rows = [row for row in facts.rows if "accepted" in row]
    if not rows:
        return None
    few = len(facts.clients) <= _MOST_BARS
    height = max(3.4, 1.2 + 0.2 * len(facts.clients)) if few else 3.4
    figure, panels = _panels(2 if facts.clients else 1, height)
    axes = panels[0]
    _stack(axes, rows, _OUTCOMES)
    goal = _column(rows, "report_goal")
    if goal[0]:
        axes.step(*goal, where="mid", color=_INK, linewidth=0.9, linestyle="--", label="wanted")
    _by_round(axes, "By round", "clients of the cohort")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=4)
    if facts.clients:
        _by_client(panels[1], facts, few)
    return figure


def _by_client(axes: Axes, facts: Facts, few: bool) -> None:
    """Draw how often each client's update counted: bars, or of many clients a skyline."""
    where = np.arange(len(facts.clients))
    base = np.zeros(len(where))
    for outcome, (_, colour) in _OUTCOMES.items():
        counts = np.array([client.outcomes[outcome] for client in facts.clients])
        if few:
            axes.barh(where, counts, left=base, color=colour)
        elif counts.any():
            edges = np.arange(len(where) + 1)
            axes.stairs(base + counts, edges, baseline=base, fill=True, color=colour)
        base = base + counts
    if few:
        axes.set_yticks(where, [_short(client.name) for client in facts.clients])
        axes.invert_yaxis()
        axes.set(title="By client", xlabel="rounds")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="x")
    else:
        axes.set(title="By client", xlabel="clients, by updates accepted", ylabel="rounds")
        axes.margins(x=0)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def _split(facts: Facts) -> Figure | None:
    if facts.parts is not None:
        parts, classes = facts.parts, facts.task.class_names if facts.task else ()
        names = [_short(part.name) for part in parts.parts]
        return draw(names, parts.sizes, parts.counts, "", classes)
    known = [client for client in facts.clients if client.examples is not None]
    known.sort(key=lambda client: -(client.examples or 0))
    if not known:
        return None
    sizes = np.array([client.examples for client in known])
    return draw([_short(c.name) for c in known], sizes, None, "", noun="client")


def _seconds(facts: Facts) -> Figure | None:
    totals = {name: facts.total(name) for name in _PHASES}
    there = {name: total for name, total in totals.items() if total}
    if not there:
        return None
    figure, (left, right) = _panels(2, 3.0)
    _stack(left, facts.rows, {name: _PHASES[name] for name in there})
    _by_round(left, "By round", "seconds")
    left.set_ylim(bottom=0)
    whole = sum(there.values())
    where = np.arange(len(there))
    right.barh(where, [*there.values()], color=[_PHASES[name][1] for name in there])
    for place, total in zip(where, there.values(), strict=True):
        text = f"{total:,.1f} s, {total / whole:.1%}"
        offset = (4, 0)
        right.annotate(text, (total, place), offset, textcoords="offset points", va="center")
    right.set_yticks(where, [_PHASES[name][0] for name in there])
    right.invert_yaxis()
    right.margins(x=0.35)
    right.set(title="In all", xlabel="seconds")
    right.grid(axis="x")
    return figure
