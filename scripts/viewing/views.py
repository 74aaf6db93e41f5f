"""The tabs of one run's page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from common.errors import InputError
from scripts.viewing import figures, maps
from scripts.viewing.messages import plain, said
from scripts.viewing.runs import Run, named_task
from scripts.viewing.tables import (
    by_client,
    confusion_of,
    examples_by_client,
    own_of_clients,
    shown,
)
from server.storage import layout
from server.storage.columns import MEASURES

if TYPE_CHECKING:
    from pathlib import Path

    from plotly.graph_objects import Figure

    from scripts.division import Parts
    from server.storage.run_files import Line

# Of Plotly's tools.
CONFIG = {"displaylogo": False, "scrollZoom": False}

# What a map of clients and rounds may show, and where it is in a line.
_VALUES = {
    "outcome": "outcome",
    "training loss": "train_loss",
    "validation accuracy": "validation_accuracy",
    "validation loss": "validation_loss",
    "accuracy after fine-tuning": "fine_tuned_accuracy",
    "time to report (s)": "seconds",
    "examples": "num_examples",
    "share of the mean": "share",
    "sent to the client (bytes)": "bytes_down",
    "sent to the server (bytes)": "bytes_up",
}


def learning(run: Run) -> None:
    """Show accuracy and loss by round."""
    rows = run.summary().rows
    if not rows:
        return
    drawn = {measure: figures.measured(rows, measure) for measure in MEASURES}
    drawn["the task's own metrics"] = figures.own(rows)
    there = {title: figure for title, figure in drawn.items() if figure is not None}
    if not there:
        st.info("Nobody has evaluated the model, and no client has said its loss.")
        return
    # The first two beside each other, and another below.
    beside, below = list(there)[:2], list(there)[2:]
    for place, title in zip(st.columns(len(beside)), beside, strict=True):
        with place:
            _titled(there[title], title)
    for title in below:
        _titled(there[title], title)


def rounds(run: Run) -> None:
    """Show who took part in each round, where its time went, and its bytes."""
    rows = run.summary().rows
    if not rows:
        return
    st.subheader("Participation")
    _chart(figures.participation(rows), "participation")
    left, right = st.columns(2)
    with left:
        st.subheader("Where the time went")
        _chart(figures.seconds(rows), "seconds")
    with right:
        st.subheader("Bytes")
        _chart(figures.traffic(rows), "traffic")


def clients(run: Run) -> None:
    """Show a value of each client and round."""
    with st.spinner("Reading the clients' rows …"):
        lines = run.clients()
    if not lines:
        st.info("There are no clients' rows yet.")
        return
    values = {**_VALUES, **{name: name for name in own_of_clients(lines)}}
    value = st.selectbox("Value", list(values), index=1, key="client-value", width=320)
    figure = _client_map(run.path, len(lines), lines[-1], value, values[value], lines)
    if figure is None:
        st.info(f"No client reported its {value}.")
    else:
        _chart(figure, f"clients-{values[value]}")


# Of many lines it takes half a second, and the clock asks for it again and again.
@st.cache_resource(show_spinner=False, max_entries=20)
def _client_map(
    path: Path,  # noqa: ARG001
    count: int,  # noqa: ARG001
    last: Line,  # noqa: ARG001
    value: str,
    name: str,
    _lines: list[Line],
) -> Figure | None:
    table = by_client(_lines, name)
    if np.isnan(table.values).all():
        return None
    return maps.outcomes(table) if name == "outcome" else maps.clients(table, value)


def classes(run: Run) -> None:
    """Show the confusion matrix and each class's accuracy in a round."""
    found = {line["round"]: line for line in run.evaluations()}
    if not found:
        st.info(
            "There is no evaluation by class: the server evaluates none, or the task is no "
            "classifier with at most 100 classes."
        )
        return
    numbers = list(found)
    latest = "the latest"
    chosen = latest
    if len(numbers) > 1:
        chosen = st.select_slider("Round", [*numbers, latest], latest, key="class-round")
    number = numbers[-1] if chosen == latest else chosen
    matrix = confusion_of(found[number])
    if matrix is None:
        raise InputError(f"{run.path / layout.EVALUATIONS}: round {number} is damaged")
    names = _class_names(run, len(matrix))
    left, right = st.columns(2)
    with left:
        st.subheader(f"Confusion matrix, round {number}")
        _chart(maps.confusion(matrix, names), "confusion")
    with right:
        st.subheader(f"Accuracy by class, round {number}")
        _chart(figures.per_class(matrix, names), "per-class")


def data(run: Run) -> None:
    """Show what each client holds."""
    try:
        # Not of the run's files, which may hold more by now, but of what doesn't change.
        _divided(run)
    except InputError as error:
        st.info(f"The clients' classes are not known here. {said(error)}")
        counts = examples_by_client(run.clients())
        if counts:
            st.subheader("Examples of each client")
            _chart(figures.examples(counts), "examples")


def settings(run: Run) -> None:
    """Show the options that the run was resolved to, and the versions it ran with."""
    st.caption(plain(str(run.path)))
    options = {name: shown(value) for name, value in run.files.options.items()}
    versions = run.files.versions
    if isinstance(versions, dict):
        options |= {f"version of {name}": shown(value) for name, value in versions.items()}
    st.dataframe(
        {"Setting": list(options), "Value": list(options.values())},
        hide_index=True,
        height="content",
    )


def _divided(run: Run) -> None:
    parts = _parts(run.files.options)
    counts = parts.counts
    names = [] if counts is None else _class_names(run, counts.shape[1])
    st.subheader("Examples of each client")
    st.caption(plain(parts.summary()))
    partitions = [part.name for part in parts.parts]
    _chart(maps.split(partitions, parts.sizes, counts, names), "split")


@st.cache_resource(show_spinner="Dividing the data …", max_entries=8)
def _parts(options: dict[str, Any]) -> Parts:
    # It imports torch, which takes seconds.
    from scripts.division import parts_of_run

    return parts_of_run(options, named_task())


def _class_names(run: Run, count: int) -> list[str]:
    """Return the task's names of so many classes; their numbers where it has none."""
    names = _classes(str(run.files.options.get("task")))
    return list(names[:count]) if len(names) >= count else [str(place) for place in range(count)]


@st.cache_resource(show_spinner="Loading the task …", max_entries=8)
def _classes(task: str) -> tuple[str, ...]:
    from common.tasks import load_task_of_run

    try:
        return tuple(load_task_of_run(task, named_task()).class_names)
    except InputError:
        return ()


def _titled(figure: Figure, title: str) -> None:
    st.subheader(title[0].upper() + title[1:])
    _chart(figure, title.replace(" ", "-"))


def _chart(figure: Figure, key: str) -> None:
    st.plotly_chart(figure, key=key, config=CONFIG)
