"""The dashboard's pages: the runs of the folder, one run, and several over one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from common.commands import command
from common.errors import InputError
from scripts.summary import Numbers, Summary
from scripts.text import decimal, duration, size
from scripts.viewing import figures, try_out, views
from scripts.viewing.messages import plain, saying
from scripts.viewing.runs import Run, names_in, open_run
from scripts.viewing.tables import Column, column, differing, own_metrics
from server.storage import layout
from server.storage.columns import COLUMNS

if TYPE_CHECKING:
    from streamlit.navigation.page import Page

# Seconds between two looks at a run that goes on.
REFRESH = 2.0
_COMPARED = 4

_VIEWS: dict[str, Callable[[Run], None]] = {
    "Learning": views.learning,
    "Rounds": views.rounds,
    "Clients": views.clients,
    "Classes": views.classes,
    "Data": views.data,
    "Settings": views.settings,
}
_TRY_OUT = "Try it"

_STYLE = """
<style>
/* Streamlit leaves a sixth of a screen empty above the page. */
.stMainBlockContainer { padding-top: 4.5rem }
/* The page's own colour: that of Plotly's text is too faint on a shaded cell. */
.st-key-confusion .textpoint text { fill: currentColor !important }
</style>
"""

# What runs are compared by, and where it is in a row.
_VALUES = {column.label: column.name for column in COLUMNS.values() if column.view}
_AXES = {
    "round": "round",
    "time (s)": "duration_seconds",
    "sent to the server (bytes)": "bytes_up",
}


def show(folder: Path) -> None:
    """Draw the page that was asked for."""
    st.set_page_config("Folkmoot", layout="wide")
    st.html(_STYLE)
    one = st.Page(partial(_one, folder), title="Run", url_path="run")
    every = st.Page(partial(_list, folder, one), title="Runs", default=True)
    several = st.Page(
        partial(_compare, folder),
        title="Compare",
        url_path="compare",
    )
    chosen = st.navigation([every, one, several], position="top")
    with saying():
        chosen.run()


def apologise(error: Exception) -> bool:
    """Show a line in place of the traceback, which goes to the terminal."""
    st.error(
        f"This can't be shown: {type(error).__name__}. The terminal of the dashboard has "
        "the details.",
        icon=":material/error:",
    )
    return True


def _names(folder: Path) -> list[str]:
    names = names_in(folder)
    if not names:
        st.info(
            f"There is no run in {plain(str(folder))} yet. `{command('quickstart')}` starts one; "
            "reload this page then.",
            icon=":material/hourglass_empty:",
        )
    return names


def _list(folder: Path, one: Page) -> None:
    st.title("Runs")
    st.caption(plain(str(folder)))

    @st.fragment(run_every=REFRESH * 2)
    def table() -> None:
        names = _names(folder)
        if not names:
            return
        chosen = st.dataframe(
            [_listed(folder / name) for name in names],
            key="runs-of-folder",
            hide_index=True,
            on_select="rerun",
            selection_mode="single-row",
            placeholder="–",
            column_config={
                "Accuracy": st.column_config.NumberColumn(format="%.4f"),
                "Best": st.column_config.NumberColumn(format="%.4f"),
                "Loss": st.column_config.NumberColumn(format="%.4f"),
            },
        )["selection"]["rows"]
        if chosen:
            st.switch_page(one, query_params={"run": names[chosen[0]]})

    table()
    st.caption("Select a run to open it.")


def _listed(path: Path) -> dict[str, object]:
    try:
        run = open_run(path)
        found = run.summary()
    except InputError:
        return {"Run": path.name, "State": "damaged"}
    return {
        "Run": run.name,
        "State": "running" if run.files.running else "ended",
        "Task": run.option("task"),
        "Strategy": run.option("strategy"),
        "Rounds": f"{found.last.get('round', 0)} of {run.option('rounds')}",
        "Accuracy": found.of(found.final, "accuracy"),
        "Best": found.of(found.best, "accuracy") if found.best_is_known else None,
        "Loss": found.of(found.final, "loss"),
        "Clients": found.last.get("num_clients"),
        "Time": duration(found.total("duration_seconds")),
        "Sent": _sent(found),
    }


def _one(folder: Path) -> None:
    names = _names(folder)
    if not names:
        return
    asked = st.query_params.get("run")
    chosen = 0 if asked is None else names.index(asked) if asked in names else None
    name = st.selectbox("Run", names, chosen)
    if name is None:
        st.warning(f"There is no run {plain(str(asked))} in {plain(str(folder))}. Choose one.")
        return
    # So that the address always says which run it is of.
    st.query_params["run"] = name
    run = open_run(folder / name)
    live = _live(run)
    every = REFRESH if live else None

    def top() -> None:
        with saying():
            _headline(run)
        if live and not _live(run):
            # The last time: all of the page is drawn without a clock.
            st.rerun()

    st.fragment(top, run_every=every)()
    tabs = st.tabs([*_VIEWS, _TRY_OUT], key="view", bind="query-params")
    for tab, (label, view) in zip(tabs, [*_VIEWS.items(), (_TRY_OUT, try_out.show)], strict=True):
        if not tab.open:
            continue
        # A tab in which somebody draws or types has no clock.
        clock = None if label == _TRY_OUT else every
        with tab:
            st.fragment(partial(_viewed, view, run), run_every=clock)()


def _viewed(view: Callable[[Run], None], run: Run) -> None:
    with saying():
        view(run)


def _live(run: Run) -> bool:
    """Say whether a look in a while may find more; a run's server begins after its directory."""
    return run.files.running or not run.summary().rows


def _headline(run: Run) -> None:
    found, missing = run.summary(), run.missing
    rows = found.rows
    with st.container(horizontal=True, vertical_alignment="center"):
        if run.files.running:
            st.badge("running", color="green")
        else:
            st.badge("ended" if rows or missing else "no round yet", color="gray")
        about = (run.option(name) for name in ("task", "model", "strategy", "partitioner"))
        st.caption(plain(" · ".join(about)), width="content")
    warnings = []
    if run.damaged:
        warnings.append(
            f"{run.damaged} damaged line{'s' * (run.damaged > 1)} of its files left out."
        )
    if missing:
        warnings.append(
            f"The last {missing} committed round{'s' * (missing > 1)} left no row in "
            f"{layout.METRICS}."
        )
    warnings += [f"{name} lacks {count} rows." for name, count in run.missing_lines.items()]
    if warnings:
        st.warning(" ".join(warnings))
    if not rows and not missing:
        st.info("No round is committed yet; this page follows the run.")
    if not rows:
        return
    with st.container(horizontal=True, gap="small"):
        for label, value, told in _metrics(run, found):
            st.metric(label, value, help=told, width="content", border=True)


def _metrics(run: Run, found: Summary) -> list[tuple[str, str, str]]:
    whose = "the server's test set" if found.side == "global" else "the clients' validation sets"
    which = "Latest" if run.files.running else "Final"
    best = found.best if found.best_is_known else {}
    return [
        (f"{which} {found.measure}", _shown(found.of(found.final)), f"On {whose}."),
        (
            f"Best {found.measure}",
            _shown(found.of(best)),
            f"On {whose}, in round {best.get('round', '–')}.",
        ),
        (
            "Rounds",
            f"{found.last['round']} of {run.option('rounds')}",
            "Committed, of those asked for.",
        ),
        ("Clients", _shown(found.last.get("num_clients"), 0), "There when the last round began."),
        ("Time", duration(found.total("duration_seconds")), "Of all committed rounds."),
        ("To clients", size(found.total("bytes_down")), "Bytes sent by the server."),
        ("To server", size(found.total("bytes_up")), "Bytes sent by the clients."),
    ]


def _compare(folder: Path) -> None:
    st.title("Compare")
    names = _names(folder)
    if not names:
        return
    chosen = st.multiselect(
        "Runs", names, default=names[:_COMPARED], key="runs", bind="query-params"
    )
    runs = []
    for name in chosen:
        with saying():
            runs.append(open_run(folder / name))
    own = dict.fromkeys(name for run in runs for name in own_metrics(run.summary().rows))
    with st.container(horizontal=True):
        value = st.selectbox("Value", [*_VALUES, *own], width=260)
        axis = st.selectbox("By", list(_AXES), width=260)
    if not runs:
        st.info("Choose the runs to compare.")
        return

    def drawn() -> None:
        with saying():
            _over_one_another(runs, value, axis)

    live = any(_live(run) for run in runs)
    st.fragment(drawn, run_every=REFRESH if live else None)()


def _over_one_another(runs: list[Run], value: str, axis: str) -> None:
    found = {run.name: run.summary() for run in runs}
    series = {name: (_axis(own.rows, axis), _value(own.rows, value)) for name, own in found.items()}
    missing = [name for name, (_, values) in series.items() if np.isnan(values).all()]
    if len(missing) < len(series):
        st.plotly_chart(figures.compare(series, axis, value), key="compared", config=views.CONFIG)
    if missing:
        st.caption(plain(f"Without such values: {', '.join(missing)}."))
    st.dataframe([{"Run": name, **_row(own)} for name, own in found.items()], hide_index=True)
    st.subheader("What differs")
    options = differing({run.name: run.files.options for run in runs})
    if len(runs) < 2 or not options:
        st.caption("Nothing: these runs have the same settings.")
        return
    table = {"Setting": list(options)}
    for place, run in enumerate(runs):
        table[run.name] = [values[place] for values in options.values()]
    st.dataframe(table, hide_index=True)


def _value(rows: Sequence[Numbers], value: str) -> Column:
    """Return a column of rows, by its name or a task's own; NaN where it isn't there."""
    if value in _VALUES:
        return column(rows, _VALUES[value])
    return own_metrics(rows).get(value, np.full(len(rows), np.nan))


def _axis(rows: Sequence[Numbers], axis: str) -> Column:
    values = column(rows, _AXES[axis])
    return values if axis == "round" else np.nancumsum(values)


def _row(found: Summary) -> dict[str, object]:
    best = found.best if found.best_is_known else {}
    return {
        "Accuracy": _shown(found.of(found.final, "accuracy")),
        "Best accuracy": _shown(found.of(best, "accuracy")),
        "in round": f"{best.get('round', '–')}",
        "Loss": _shown(found.of(found.final, "loss")),
        "Time": duration(found.total("duration_seconds")),
        "Sent": _sent(found),
    }


def _shown(value: float | None, places: int = 4) -> str:
    return decimal(value, places) or "–"


def _sent(found: Summary) -> str:
    both = [found.total("bytes_down"), found.total("bytes_up")]
    return size(None if both == [None, None] else sum(filter(None, both)))
