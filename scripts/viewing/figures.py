"""The dashboard's figures: plain functions from lines and tables to Plotly figures.

Their colours are readable on white and on black, and no background is set: the page's theme has
that. Know nothing about files or pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import qualitative

from scripts.summary import Numbers
from scripts.viewing.tables import Column, column, own_metrics

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


def accuracy(rows: Sequence[Numbers]) -> go.Figure | None:
    """Return the accuracy by round: the server's, and the clients' mean with its spread.

    None where nobody measures one.
    """
    figure = blank("round", ACCURACY, rounds=len(rows))
    _add_clients(figure, rows, "accuracy")
    _add_line(figure, rows, "fine_tuned_accuracy_median", "clients' median, fine-tuned", PURPLE)
    _add_line(figure, rows, "global_accuracy", "server's held-out data", BLUE)
    return figure if figure.data else None


def loss(rows: Sequence[Numbers]) -> go.Figure | None:
    """Return the loss by round: the server's, the clients' with its spread, and in training.

    None where nobody measures one.
    """
    figure = blank("round", "loss (mean over the examples)", rounds=len(rows))
    _add_clients(figure, rows, "loss")
    _add_line(figure, rows, "train_loss", "in local training, mean", GREEN, dash="dot")
    _add_line(figure, rows, "global_loss", "server's held-out data", BLUE)
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
    parts = {"accepted": GREEN, "refused": RED, "dropped": ORANGE}
    _add_stack(figure, rows, {name: (name, colour) for name, colour in parts.items()})
    _add_line(figure, rows, "cohort_size", "selected", GREY, dash="dot")
    figure.update_yaxes(rangemode="tozero")
    return figure


def seconds(rows: Sequence[Numbers]) -> go.Figure:
    """Return where each round's time went."""
    figure = blank("round", "time (s)", rounds=len(rows))
    parts = {"collect": BLUE, "aggregate": ORANGE, "evaluate": GREEN, "commit": PURPLE}
    names = {f"{name}_seconds": (name, colour) for name, colour in parts.items()}
    _add_stack(figure, rows, names, " s")
    return figure


def traffic(rows: Sequence[Numbers]) -> go.Figure:
    """Return the bytes of each round, in both directions."""
    figure = blank("round", "sent in the round (bytes)", rounds=len(rows))
    _add_line(figure, rows, "bytes_down", "server to clients", BLUE)
    _add_line(figure, rows, "bytes_up", "clients to server", ORANGE)
    if np.nansum(column(rows, "bytes_resent")) > 0:
        _add_line(figure, rows, "bytes_resent", "of both, sent again", RED, dash="dot")
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


def _add_clients(figure: go.Figure, rows: Sequence[Numbers], name: str) -> None:
    """Add the clients' mean, median and lowest, and a band from the 10th percentile to the highest.

    Where an older run has no percentile, the band begins with the lowest.
    """
    rounds = column(rows, "round")
    low, lowest = column(rows, f"client_{name}_p10"), column(rows, f"client_{name}_min")
    high = column(rows, f"client_{name}_max")
    begins = "10th percentile"
    if np.isnan(low).all():
        low, begins = lowest, "lowest"
    known = ~(np.isnan(low) | np.isnan(high))
    if known.any():
        bound = {"mode": "lines", "line": {"width": 0, "color": ORANGE}, "legendgroup": "spread"}
        hover = "%{y:.4~f}"
        figure.add_scatter(
            x=rounds[known],
            y=low[known],
            name=f"clients, {begins}",
            showlegend=False,
            hovertemplate=hover,
            **bound,
        )
        figure.add_scatter(
            x=rounds[known],
            y=high[known],
            name=f"clients, {begins} to highest",
            fill="tonexty",
            fillcolor="rgba(239, 135, 51, 0.18)",
            hovertemplate=hover,
            **bound,
        )
    _add_line(figure, rows, f"client_{name}", "clients' own data, mean", ORANGE)
    _add_line(figure, rows, f"client_{name}_median", "clients, median", ORANGE, dash="dash")
    if begins != "lowest":
        _add(figure, rounds, lowest, "clients, lowest", GREY, dash="dot")


def _add_stack(
    figure: go.Figure,
    rows: Sequence[Numbers],
    parts: Mapping[str, tuple[str, str]],
    suffix: str = "",
) -> None:
    """Add columns on top of one another, by their names: what they are called, and their colour."""
    rounds = column(rows, "round")
    for name, (label, colour) in parts.items():
        values = np.nan_to_num(column(rows, name))
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
