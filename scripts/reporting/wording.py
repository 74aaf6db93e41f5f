"""A run's facts in words and tables, which its page and its model card share.

Knows nothing about HTML, Markdown or plots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scripts.reporting.facts import Client, Facts
from scripts.summary import Numbers, own_names, plain
from scripts.text import decimal, duration, size
from server.options import group_of
from server.storage.columns import MEASURED, MEASURES, SPREAD, VIEWS, Column, Shown
from server.storage.columns import columns as catalogue

# In a page, of more rounds or clients some are shown.
_MOST_ROUNDS, _MOST_CLIENTS = 25, 40
# Columns of the task's own metrics.
_MOST_OWN = 6


class Table(NamedTuple):
    """Cells as text; the first column names the rows. None: there is nothing to say."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | None]]


def title(facts: Facts) -> str:
    """Return what was trained."""
    named = [facts.option("task"), facts.option("model")]
    return " · ".join(name for name in named if name) or facts.run_id


def headline(facts: Facts) -> list[tuple[str, str, str]]:
    """Return the figures that matter most: each a name, a value, and a remark."""
    where = "test set" if facts.side == "global" else "clients' validation sets"
    shown = {"Best": facts.best if facts.best_is_known else {}, "Last": facts.final}
    if shown["Best"] is shown["Last"]:
        del shown["Last"]
    found = [
        (f"{which} {facts.measure}", f"{value:.4f}", f"round {row['round']}, {where}")
        for which, row in shown.items()
        if (value := facts.of(row)) is not None
    ]
    found.append(("Rounds", f"{len(facts.rows):,}", _of(facts, "rounds")))
    taught = sum(client.outcomes["accepted"] > 0 for client in facts.clients)
    if taught:
        remark = _of(facts, "num_partitions", " partitions")
        found.append(("Clients", f"{taught:,}", "trained it" + (remark and f"; {remark}")))
    if (seconds := facts.total("duration_seconds")) is not None:
        mean = seconds / len(facts.rows)
        found.append(("Time in rounds", duration(seconds), f"{duration(mean)} a round"))
    if (up := facts.total("bytes_up")) is not None:
        down = facts.total("bytes_down") or 0
        found.append(("Uploaded", size(up), f"{size(down)} downloaded"))
    return found


def _of(facts: Facts, option: str, after: str = "") -> str:
    value = facts.option(option)
    return f"of {value}{after}" if value else ""


def setup(facts: Facts) -> list[tuple[str, str]]:
    """Return how it was trained, by subject; what the run doesn't say is left out."""
    partitioner = facts.option("partitioner")
    of_scheme = {"alpha": ("dirichlet", "quantity"), "shards_per_client": ("shards",)}
    split = [
        name
        for name in group_of("split")
        if name != "partition_seed" and partitioner in of_scheme.get(name, (partitioner,))
    ]
    model = [facts.option("model")]
    if facts.values is not None:
        model.append(f"{facts.values:,} values in {facts.tensors} tensors")
    model += [f"tensors that stay at the clients: {kept}"] if (kept := local(facts)) else []
    about = (type(facts.task).__doc__ or "") if facts.task else ""
    task = [facts.option("task"), plain(about.strip().split("\n\n")[0])]
    outputs = facts.task.declared if facts.task else None
    found = {
        "Task": ": ".join(filter(None, task)),
        "Model": ", ".join(filter(None, model)),
        "Outputs": plain(outputs.said) if outputs else "",
        "Strategy": _said(facts, group_of("strategy"), bare="strategy"),
        "Local training": _said(facts, group_of("training")),
        "Rounds": _said(facts, ["rounds", "target_accuracy", "patience"], bare="rounds"),
        "Clients of a round": _said(facts, group_of("cohort")),
        "Data split": _said(facts, split, bare="partitioner"),
        "Seeds": _said(facts, ["seed", "partition_seed"]),
        "Versions": ", ".join(f"{name} {number}" for name, number in facts.versions.items()),
    }
    return [(subject, text) for subject, text in found.items() if text]


def _said(facts: Facts, names: Sequence[str], bare: str = "") -> str:
    said = ((name, facts.option(name)) for name in names)
    return ", ".join(
        value if name == bare else f"{name.replace('_', ' ')} {value}"
        for name, value in said
        if value not in ("", "{}")
    )


def local(facts: Facts) -> str:
    """Return the pattern of the tensors that are in no model file; empty if all are."""
    return facts.option("local_layers")


def results(facts: Facts) -> Table | None:
    """Return the best round's and the last one's metrics, a row each."""
    shown = [facts.last]
    if facts.best_is_known and facts.best is not facts.last:
        shown.insert(0, facts.best)
    names = {column.name: column.label for column in MEASURED.values() if not column.spread}
    names |= {
        name: f"{metric} ({VIEWS['client_mean' if side == 'client' else side]})"
        for name in own_names([facts.last])
        for side, _, metric in [name.partition("_")]
    }
    rows = [
        [label, *(decimal(row.get(name)) for row in shown)]
        for name, label in names.items()
        if any(name in row for row in shown)
    ]
    head = ["metric", *(_round_name(facts, row) for row in shown)]
    return Table(head, rows) if rows else None


def _round_name(facts: Facts, row: Numbers) -> str:
    best = "best: " if facts.best_is_known and row is facts.best else ""
    return f"{best}round {row['round']}" if row else ""


def spread(facts: Facts) -> Table | None:
    """Return how the clients' own evaluations spread, each client counting as one."""
    columns = {
        measure: [MEASURED.get((measure, f"client_{end}")) for end in SPREAD]
        for measure in MEASURES
    }
    rows = [
        [measure, *(column and decimal(facts.best.get(column.name)) for column in ends)]
        for measure, ends in columns.items()
        if any(column and column.name in facts.best for column in ends)
    ]
    head = [f"round {facts.best.get('round')}", *(words for _, words in SPREAD.values())]
    return Table(head, rows) if rows else None


def by_class(facts: Facts) -> Table | None:
    """Return each class's accuracy."""
    if facts.by_class is None:
        return None
    classes, counts = facts.by_class.classes, facts.by_class.counts
    rows = [
        [name, f"{count:,}", decimal(accuracy)]
        for name, count, accuracy in zip(classes, counts, facts.by_class.accuracies(), strict=True)
    ]
    return Table(["class", "test examples", "accuracy"], rows)


def rounds(facts: Facts) -> Table | None:
    """Return the rounds; of many, some, and always the first, the best and the last."""
    if not facts.rows:
        return None
    step = -(-len(facts.rows) // _MOST_ROUNDS)
    always = {facts.rows[0]["round"], facts.best["round"], facts.last["round"]}
    shown = [
        row
        for number, row in enumerate(facts.rows, 1)
        if number % step == 0 or row["round"] in always
    ]
    columns: dict[str, Sequence[str | None]] = {
        **{
            column.short: [_cell(column, row) for row in shown]
            for column in catalogue(shown=Shown.REPORT)
        },
        **{
            name.replace("_", " "): [decimal(row.get(name)) for row in shown]
            for name in own_names(facts.rows)[:_MOST_OWN]
        },
    }
    return _table("round", [f"{row['round']}" for row in shown], columns)


def clients(facts: Facts) -> Table | None:
    """Return the clients; of many, those that the model serves worst, as far as is known."""
    if not facts.clients:
        return None
    shown = sorted(facts.clients, key=_worst_first)[:_MOST_CLIENTS]
    if len(facts.clients) <= _MOST_CLIENTS:
        shown = list(facts.clients)
    columns: dict[str, Sequence[str | None]] = {
        "accepted": [f"{client.outcomes['accepted']:,}" for client in shown],
        "refused": [f"{client.outcomes['refused']:,}" for client in shown],
        "dropped": [f"{client.outcomes['dropped']:,}" for client in shown],
        "training examples": [_whole(client.examples) for client in shown],
        "last accuracy": [decimal(client.accuracy) for client in shown],
        "last loss": [decimal(client.loss) for client in shown],
        "seconds a round": [_mean(client.seconds) for client in shown],
        "uploaded": [size(client.bytes_up) for client in shown],
    }
    return _table("client", [client.name for client in shown], columns)


def _table(
    subject: str, names: Sequence[str], columns: Mapping[str, Sequence[str | None]]
) -> Table:
    """Return a table of named columns, but those that say nothing."""
    there = {name: cells for name, cells in columns.items() if any(c is not None for c in cells)}
    rows: list[list[str | None]] = [[name] for name in names]
    for cells in there.values():
        for row, cell in zip(rows, cells, strict=True):
            row.append(cell)
    return Table([subject, *there], rows)


def _worst_first(client: Client) -> tuple[float, int]:
    return (2.0 if client.accuracy is None else client.accuracy, client.outcomes["accepted"])


def _mean(values: Sequence[float]) -> str | None:
    return f"{sum(values) / len(values):,.1f}" if values else None


def _cell(column: Column, row: Numbers) -> str | None:
    return column.text(row[column.name]) if column.name in row else None


def _whole(value: float | None) -> str | None:
    return None if value is None else f"{value:,}"
