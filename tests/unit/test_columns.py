"""A metric column is declared once, and all that reads rows shows it."""

from dataclasses import fields

import pytest

from server.storage.columns import COLUMNS, MEASURED, Row
from tests.copied import changed, copy_tree, python

# All that a new column takes: its declaration, and what it is computed from.
ADDED = {
    "server/storage/columns.py": {
        '    "loss": (': '    "calibration error": ("fraction of the examples", "lower"),\n',
        "    train_loss: ": (
            "    global_calibration: float | None = _measured(\n"
            '        "calibration error", "global", "calibration", _EVERYWHERE\n'
            "    )\n"
        ),
    },
    "server/run/ledger.py": {
        "            global_loss=loss,": (
            '            global_calibration=own.pop("calibration", None),\n'
        )
    },
}
# Prints what each reader of a run's rows shows of one.
READERS = """
import json, pathlib
from types import SimpleNamespace
from prometheus_client import generate_latest
from protos import federated_pb2 as pb
from rich.console import Console
from scripts import admin_views, quickstart
from scripts.reporting import card, wording
from scripts.reporting.facts import collect
from scripts.viewing import figures
from server.mlflow_reporting.history import _metrics
from server.options import ServerOptions
from server.prometheus.collector import RunCollector
from server.run.ledger import headline
from server.run.ledger import committed
from server.storage.run_files import RunFiles
from tests.recorded import begin, commit, row
from tests.unit.test_ledger import ledger, row_of

print("ledger:", row_of(ledger(global_metrics={"calibration": 0.125}))[0].global_calibration)
one, folder = row(1, global_calibration=0.125), pathlib.Path("run")
begin(folder)
commit(folder, 1, global_calibration=0.125, best_round=1)
rows = RunFiles(folder).metrics.all()
print("log:", headline(one)["global_calibration"])
print("json:", rows[0]["global_calibration"])
print("csv:", "global_calibration" in (folder / "metrics.csv").read_text())
print("mlflow:", _metrics(rows[0])["global_calibration"])
found = RunCollector(SimpleNamespace(history=[]), (), {})
found._show(committed(one))
print("prometheus:", generate_latest(found._own).decode())
facts = collect(folder)
print("report:", [x for x in wording.results(facts).rows if "calib" in x[0]])
print("report's rounds:", "calibration" in wording.rounds(facts).head)
print("card:", "calibration error (server's test set)" in card.render(facts, ()))
print("dashboard:", [t.name for t in figures.measured(rows, "calibration error").data])
console = Console(width=200)
metrics = {k: v for k, v in rows[0].items() if isinstance(v, float)}
console.print(admin_views.rounds_table([pb.Round(number=1, metrics=metrics)]))
quickstart._report(folder, ServerOptions())
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Return what each reader says of the new column, by the reader."""
    folder = copy_tree(tmp_path_factory.mktemp("copy"), ADDED)
    assert len(changed(folder)) == 2
    status, text = python(folder, "-c", READERS, COLUMNS="200")
    assert status == 0, text
    return text


@pytest.mark.parametrize(
    "line",
    [
        "ledger: 0.125",
        "log: 0.125",
        "json: 0.125",
        "csv: True",
        "mlflow: 0.125",
        'folkmoot_model_metric{metric="calibration_error",view="global"} 0.125',
        "report: [[\"calibration error (server's test set)\", '0.1250'",
        "report's rounds: True",
        "card: True",
        'dashboard: ["server\'s test set"]',
    ],
)
def test_a_new_column_is_shown_by_all_that_read_rows(shown, line):
    assert line in shown


def test_tables_on_a_terminal_have_a_column_for_it(shown):
    _, _, tables = shown.partition("dashboard:")
    assert tables.count(" calibration ") == 2
    assert tables.count(" 0.1250 ") == 2


def test_each_measure_and_view_has_one_column_and_each_number_is_declared():
    assert len(MEASURED) == sum(bool(column.view) for column in COLUMNS.values())
    rest = {"round", "attempt", "model_blake3", "best_round", "global_metrics", "client_metrics"}
    assert {field.name for field in fields(Row)} - COLUMNS.keys() == rest
