"""The dashboard's figures: plain functions from lines and tables to Plotly figures.

Their colours are readable on white and on black, and no background is set: the page's theme has
that. Know nothing about files or pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import qualitative

from scripts.summary import Numbers
from scripts.viewing.tables import Column, column, own_metrics
from server.storage.columns import MEASURED, MEASURES, VIEWS, columns
from server.storage.columns import Column as Catalogued

BLUE, ORANGE, GREEN = "#4c8bf5", "#ef8733", "#2fa36b"
RED, GREY, PURPLE = "#e0524d", "#8a8f98", "#9b6ddb"
# Tableau's, for classes and runs.
PALETTE = qualitative.T10
# Of more rounds, bars would be thinner than a pixel.
_MOST_BARS = 120
_MOST_POINTS = 60
# Of more rounds, not each has a tick.
_MOST_TICKS = 12

ACCURACY = "accuracy (share of the examples)"


# How a measure is drawn, by whose it is.
_LINES = {
    "client_mean": (ORANGE, "solid"),
    "client_median": (ORANGE, "dash"),
    "client_min": (GREY, "dot"),
    "train": (GREEN, "dot"),
    "global": (BLUE, "solid"),
}


def measured(rows: Sequence[Numbers], measure: str) -> go.Figure | None:
    """Return a measure by round: the server's, the clients' with its spread, and in training.

    None where nobody measures it.
    """
    columns = {view: found for (name, view), found in MEASURED.items() if name == measure}
    figure = blank("round", f"{measure} ({MEASURES[measure][0]})", rounds=len(rows))
    # Some runs have no 10th percentile.
    begins = next(
        (
            view
            for view in ("client_p10", "client_min")
            if view in columns and not np.isnan(column(rows, columns[view].name)).all()
        ),
        None,
    )
    if begins and "client_max" in columns:
        _add_band(figure, rows, columns[begins], columns["client_max"])
    for view, (colour, dash) in _LINES.items():
        if view in columns and view != begins:
            _add_line(figure, rows, columns[view].name, VIEWS[view], colour, dash)
    return figure if figure.data else None


def own(rows: Sequence[Numbers]) -> go.Figure | None:
    """Return what the task's own evaluation measures by round; None where that is nothing."""
    found = own_metrics(rows)
    if not found:
        return None
    figure = blank("round", "value", rounds=len(rows))
    rounds = column(rows, "round")
    for place, (name, values) in enumerate(found.items()):
        _add(figure, rounds, values, name, PALETTE[place % len(PALETTE)])
    return figure


def participation(rows: Sequence[Numbers]) -> go.Figure:
    """Return how many clients were selected in each round, and what became of them."""
    figure = blank("round", "clients", rounds=len(rows))
    _add_stack(figure, rows, "outcome", (GREEN, ORANGE, RED))
    _add_line(figure, rows, "cohort_size", "selected", GREY, dash="dot")
    figure.update_yaxes(rangemode="tozero")
    return figure


def seconds(rows: Sequence[Numbers]) -> go.Figure:
    """Return where each round's time went."""
    figure = blank("round", "time (s)", rounds=len(rows))
    _add_stack(figure, rows, "phase", (BLUE, ORANGE, GREEN, PURPLE), " s")
    return figure


def traffic(rows: Sequence[Numbers]) -> go.Figure:
    """Return the bytes of each round, in both directions."""
    figure = blank("round", "sent in the round (bytes)", rounds=len(rows))
    for part, colour in zip(columns(group="bytes"), cycle((BLUE, ORANGE, RED)), strict=False):
        if np.nansum(column(rows, part.name)) > 0:
            _add_line(figure, rows, part.name, part.label, colour)
    figure.update_yaxes(rangemode="tozero", tickformat="~s", ticksuffix="B", hoverformat=".4s")
    return figure


def per_class(matrix: NDArray[np.int64], names: Sequence[str]) -> go.Figure:
    """Return each class's accuracy: the share of its examples that were recognised."""
    figure = blank("class", ACCURACY, 460)
    counts = matrix.sum(1)
    with np.errstate(invalid="ignore"):
        found = matrix.diagonal() / counts
    figure.add_bar(
        x=list(names),
        y=found,
        customdata=counts,
        marker_color=BLUE,
        hovertemplate="class %{x}: %{y:.4f}<br>of %{customdata} examples<extra></extra>",
    )
    figure.update_layout(hovermode="closest")
    figure.update_yaxes(range=[0, 1])
    figure.update_xaxes(type="category")
    return figure


def examples(counts: Mapping[str, float]) -> go.Figure:
    """Return the examples that each client trained on."""
    figure = blank("client", "examples in training")
    figure.add_bar(x=list(counts), y=list(counts.values()), marker_color=BLUE, name="examples")
    figure.update_xaxes(type="category")
    return figure


def compare(series: Mapping[str, tuple[Column, Column]], x: str, y: str) -> go.Figure:
    """Return several runs over one another: each one's x and y, by its name."""
    longest = max((len(where) for where, _ in series.values()), default=0)
    figure = blank(x, y, 460, longest if x == "round" else 0)
    for place, (name, (where, values)) in enumerate(series.items()):
        _add(figure, where, values, name, PALETTE[place % len(PALETTE)])
    return figure


def probabilities(names: Sequence[str], values: Sequence[float]) -> go.Figure:
    """Return a prediction: a bar for each class."""
    figure = blank("probability", "", 90 + 26 * len(names))
    figure.add_bar(
        y=list(names),
        x=list(values),
        orientation="h",
        marker_color=BLUE,
        text=[f"{value:.1%}" for value in values],
        textposition="auto",
        hovertemplate="%{y}: %{x:.4f}<extra></extra>",
    )
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(range=[0, 1])
    figure.update_yaxes(type="category", autorange="reversed")
    return figure


def values(names: Sequence[str], found: Sequence[float], true: Sequence[float]) -> go.Figure:
    """Return numbers that a model gives, a bar each, and the true ones if they are known."""
    figure = blank("value", "", 130 + 26 * len(names))
    for label, numbers, colour in (("predicted", found, BLUE), ("true", true, GREY)):
        if len(numbers):
            figure.add_bar(
                y=list(names),
                x=list(numbers),
                name=label,
                orientation="h",
                marker_color=colour,
                text=[f"{number:.4g}" for number in numbers],
                hovertemplate="%{y}: %{x:.6~g}",
            )
    figure.update_layout(hovermode="closest", showlegend=bool(len(true)))
    figure.update_yaxes(type="category", autorange="reversed")
    return figure


def blank(x: str, y: str, height: int = 340, rounds: int = 0) -> go.Figure:
    """Return a figure without data.

    Args:
        x: what the axis has, with its unit.
        y: the same.
        height: in pixels; its width is the window's.
        rounds: if the x axis has rounds, how many.
    """
    figure = go.Figure()
    figure.update_layout(
        height=height,
        margin={"l": 0, "r": 0, "t": 10, "b": 0},
        hovermode="x unified",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        # Zoom and hidden lines stay while a live run's figure grows.
        uirevision="kept",
        bargap=0.15,
    )
    figure.update_xaxes(title=x, automargin=True)
    if x == "round":
        # There is no round 0; a bar of round 1 begins before it.
        figure.update_xaxes(minallowed=0.5)
    if 0 < rounds <= _MOST_TICKS:
        # There is no round 1.5.
        figure.update_xaxes(dtick=1)
    figure.update_yaxes(title=y, automargin=True)
    return figure


def _add(
    figure: go.Figure, x: Column, y: Column, name: str, colour: str, dash: str = "solid"
) -> None:
    known = ~(np.isnan(x) | np.isnan(y))
    if not known.any():
        return
    mode = "lines+markers" if known.sum() <= _MOST_POINTS else "lines"
    figure.add_scatter(
        x=x[known],
        y=y[known],
        name=name,
        mode=mode,
        line={"color": colour, "width": 2, "dash": dash},
        marker={"size": 5},
        hovertemplate="%{y:.4~f}" if y[known].max() < 1000 else "%{y}",
    )


def _add_line(
    figure: go.Figure,
    rows: Sequence[Numbers],
    name: str,
    label: str,
    colour: str,
    dash: str = "solid",
) -> None:
    _add(figure, column(rows, "round"), column(rows, name), label, colour, dash)


def _add_band(
    figure: go.Figure, rows: Sequence[Numbers], lower: Catalogued, upper: Catalogued
) -> None:
    """Add a band between two columns of the clients' spread."""
    rounds, low, high = (column(rows, name) for name in ("round", lower.name, upper.name))
    known = ~(np.isnan(low) | np.isnan(high))
    if not known.any():
        return
    bound = {"mode": "lines", "line": {"width": 0, "color": ORANGE}, "legendgroup": "spread"}
    bound |= {"x": rounds[known], "hovertemplate": "%{y:.4~f}"}
    begins = VIEWS[lower.view]
    figure.add_scatter(y=low[known], name=begins, showlegend=False, **bound)
    figure.add_scatter(
        y=high[known],
        name=f"{begins} to highest",
        fill="tonexty",
        fillcolor="rgba(239, 135, 51, 0.18)",
        **bound,
    )


def _add_stack(
    figure: go.Figure, rows: Sequence[Numbers], group: str, colours: Sequence[str], suffix: str = ""
) -> None:
    """Add the columns of a group on top of one another."""
    rounds = column(rows, "round")
    for part, colour in zip(columns(group=group), cycle(colours), strict=False):
        label, values = part.label, np.nan_to_num(column(rows, part.name))
        hover = "%{y:.3~f}" + suffix
        if len(rows) <= _MOST_BARS:
            figure.add_bar(x=rounds, y=values, name=label, marker_color=colour, hovertemplate=hover)
        else:
            figure.add_scatter(
                x=rounds,
                y=values,
                name=label,
                stackgroup="parts",
                mode="lines",
                line={"width": 0, "color": colour, "shape": "hvh"},
                fillcolor=colour,
                hovertemplate=hover,
            )
    figure.update_layout(barmode="stack")
