"""The dashboard's maps: values by client and round, by true and predicted class, by partition.

Plain functions from tables to Plotly figures. Know nothing about files or pages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from scripts.viewing.figures import BLUE, GREEN, GREY, ORANGE, PALETTE, RED, blank
from scripts.viewing.tables import OUTCOMES, ByClient

# From almost nothing, whatever the background, to a blue that the theme's text is readable on.
_SHADES = [[0, "rgba(76, 139, 245, 0.06)"], [1, "rgba(76, 139, 245, 0.7)"]]
# Of more rows or classes, a figure is a map without numbers.
_MOST_ROWS, _MOST_CLASSES = 30, 20
# Of a map of clients, with its key and its axis.
_LEAST_HEIGHT = 320
_SPLIT_HEIGHT = 560


def clients(table: ByClient, unit: str) -> go.Figure:
    """Return a value by client and round as a map."""
    height = min(1000, max(_LEAST_HEIGHT, 180 + 24 * len(table.clients)))
    figure = blank("round", "client", height, len(table.rounds))
    hover = "round %{x}<br>%{y}<br>%{z:.4~f}<extra></extra>"
    figure.add_heatmap(
        x=table.rounds,
        y=table.clients,
        z=table.values,
        colorscale="Viridis",
        colorbar=_bar(height),
        hovertemplate=hover,
        hoverongaps=False,
    )
    return _map(figure, unit)


def outcomes(table: ByClient) -> go.Figure:
    """Return what each client's rounds ended with as a map."""
    figure = clients(table, "outcome")
    colours = (GREEN, RED, ORANGE, GREY)
    edges = np.arange(len(colours) + 1) / len(colours)
    steps = [
        (edge, c) for i, c in enumerate(colours) for edge in (float(edges[i]), float(edges[i + 1]))
    ]
    names = [outcome.replace("_", " ") for outcome in OUTCOMES]
    figure.update_traces(
        zmin=-0.5,
        zmax=len(names) - 0.5,
        colorscale=steps,
        colorbar=_bar(figure.layout.height)
        | {"tickvals": list(range(len(names))), "ticktext": names},
        hovertemplate="round %{x}<br>%{y}<extra></extra>",
    )
    return figure


def confusion(matrix: NDArray[np.int64], names: Sequence[str]) -> go.Figure:
    """Return a confusion matrix: shaded by the share of the true class, with the counts."""
    few = len(matrix) <= _MOST_CLASSES
    figure = blank("predicted class", "true class", 460 if few else 620)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure.add_heatmap(
        x=list(names),
        y=list(names),
        z=share,
        text=matrix,
        zmin=0,
        zmax=1,
        colorscale=_SHADES,
        colorbar=_bar(figure.layout.height),
        hovertemplate="true %{y}, predicted %{x}<br>%{text} examples<br>%{z:.1%} of the class"
        "<extra></extra>",
    )
    if few:
        # A trace of its own has the theme's colour (see the page's style); a map's text has not.
        true, predicted = np.nonzero(matrix)
        figure.add_scatter(
            x=[names[int(place)] for place in predicted],
            y=[names[int(place)] for place in true],
            text=[f"{count:,}" for count in matrix[true, predicted]],
            mode="text",
            hoverinfo="skip",
            showlegend=False,
        )
        figure.update_xaxes(dtick=1)
        figure.update_yaxes(dtick=1)
    figure.update_xaxes(type="category")
    return _map(figure, "share of the true class")


def places(classes: NDArray[np.int64], names: Sequence[str]) -> go.Figure:
    """Return the class at each place of a plane, shape [height, width]."""
    figure = blank("", "", 360)
    figure.add_heatmap(
        z=classes,
        text=[
            [names[place] if 0 <= place < len(names) else "" for place in row] for row in classes
        ],
        zmin=0,
        zmax=max(1, len(names) - 1),
        colorscale="Viridis",
        showscale=False,
        hovertemplate="%{text}<br>row %{y}, column %{x}<extra></extra>",
    )
    figure.update_layout(hovermode="closest")
    figure.update_yaxes(autorange="reversed", scaleanchor="x", showgrid=False)
    figure.update_xaxes(constrain="domain", showgrid=False)
    return figure


def split(
    partitions: Sequence[str],
    sizes: NDArray[np.int64],
    counts: NDArray[np.int64] | None,
    classes: Sequence[str],
) -> go.Figure:
    """Return the examples of each partition, by class where there are classes.

    Args:
        partitions: their names.
        sizes: shape [partitions], the examples of each.
        counts: shape [partitions, classes], the examples of each class; None: no classes.
        classes: their names.
    """
    if counts is not None and (len(sizes) > _MOST_ROWS or counts.shape[1] > _MOST_CLASSES):
        return _split_map(partitions, sizes, counts, classes)
    if len(sizes) > _MOST_ROWS:
        figure = blank("partition", "examples")
        figure.add_bar(x=list(partitions), y=sizes, marker_color=BLUE, name="examples")
        figure.update_xaxes(type="category")
        return figure
    figure = blank("examples", "partition", 130 + 26 * len(sizes))
    parts = [("examples", sizes)] if counts is None else list(zip(classes, counts.T, strict=True))
    for place, (name, values) in enumerate(parts):
        figure.add_bar(
            y=list(partitions),
            x=values,
            name=name,
            orientation="h",
            marker_color=PALETTE[place % len(PALETTE)],
            marker_line_width=0,
        )
    figure.update_layout(barmode="stack", hovermode="y unified", legend_title_text="class")
    figure.update_layout(showlegend=counts is not None)
    figure.update_yaxes(type="category", autorange="reversed")
    return figure


def _split_map(
    partitions: Sequence[str],
    sizes: NDArray[np.int64],
    counts: NDArray[np.int64],
    classes: Sequence[str],
) -> go.Figure:
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.35, 0.65], vertical_spacing=0.05)
    share = counts / np.maximum(sizes[:, None], 1)
    where = list(range(len(sizes)))
    figure.add_bar(
        x=where,
        y=sizes,
        text=list(partitions),
        textposition="none",
        marker_color=BLUE,
        hovertemplate="partition %{text}<br>%{y} examples<extra></extra>",
        row=1,
        col=1,
    )
    figure.add_heatmap(
        x=where,
        y=list(classes),
        z=share.T,
        colorscale=_SHADES,
        zmin=0,
        colorbar=_bar(_SPLIT_HEIGHT),
        hovertemplate="partition %{x}, class %{y}<br>%{z:.1%} of its examples<extra></extra>",
        row=2,
        col=1,
    )
    figure.update_layout(height=_SPLIT_HEIGHT, margin={"l": 0, "r": 0, "t": 80, "b": 0}, bargap=0)
    figure.update_layout(showlegend=False, uirevision="kept")
    _say(figure, "share of the partition's examples")
    figure.update_yaxes(title="examples", row=1)
    figure.update_yaxes(title="class", type="category", autorange="reversed", row=2)
    figure.update_xaxes(title="partition", row=2)
    return figure


def _bar(height: int) -> dict[str, object]:
    """Return a map's key, above it: beside it there is no room on a telephone."""
    return {
        "orientation": "h",
        # By the map's own height, Plotly would leave the axis's title on the ticks' numbers.
        "yref": "container",
        "y": 1 - 24 / height,
        "yanchor": "top",
        "x": 0,
        "xanchor": "left",
        "len": 1,
        "thickness": 12,
    }


def _map(figure: go.Figure, unit: str) -> go.Figure:
    _say(figure, unit)
    figure.update_layout(hovermode="closest", margin={"l": 0, "r": 0, "t": 80, "b": 0})
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure


def _say(figure: go.Figure, unit: str) -> None:
    """Say above the key what it is of; Plotly's own title of it would lie on it."""
    where = {"xref": "paper", "x": 0, "yref": "paper", "y": 1, "yanchor": "bottom", "yshift": 54}
    figure.add_annotation(text=unit, showarrow=False, **where)
