"""Each kind of outputs, from a real training to whoever shows what was learned."""

import csv

import numpy as np
import pytest
from starlette.testclient import TestClient

from scripts.cli import run_app
from scripts.exporting.__main__ import app as export
from scripts.reporting.__main__ import app as report
from scripts.serving.batching import Batching
from scripts.serving.loading import load_model
from scripts.serving.service import create_app
from tests.e2e.harness import json_lines


def train(federation, kind, *flags, status=0):
    """Train two rounds with two clients; return the server."""
    task = f"tests.kinds:{kind}"
    flags = ("--rounds", 2, "--num-partitions", 2, *flags)
    server = federation.server(*flags, task=task)
    clients = [federation.client(number, task=task) for number in (0, 1)]
    assert server.wait() == status, server.text
    if not status:
        assert [client.wait() for client in clients] == [0, 0], clients[0].text
    return server


@pytest.mark.parametrize("kind", ["Column", "Flat", "OwnLoss", "Several", "Tags", "Own"])
def test_what_has_no_accuracy_is_trained_by_its_loss(federation, kind):
    train(federation, kind, "--patience", 5)
    first, last = federation.rows
    assert last["global_loss"] < first["global_loss"]
    assert last["best_round"] == 2
    assert last["global_accuracy"] is last["client_accuracy"] is None


@pytest.mark.parametrize("kind", ["Pixels", "TwoInputs", "Lazy"])
def test_classes_have_an_accuracy_whatever_goes_in(federation, kind):
    train(federation, kind)
    assert federation.rows[-1]["global_accuracy"] > 0.6


# What is answered to an input of zeros.
ANSWERED = {
    "Column": {"label", "value", "unit"},
    "Flat": {"label", "value", "unit"},
    "OwnLoss": {"label", "value", "unit"},
    "Tags": {"label", "probability", "holds"},
    "Pixels": {"label", "share"},
    "Lazy": {"label", "probability"},
}


@pytest.mark.parametrize("kind", ANSWERED)
@pytest.mark.filterwarnings("ignore:Cyclopts application invoked")
def test_what_was_trained_is_exported_served_reported_and_tried(federation, monkeypatch, kind):
    train(federation, kind)
    run, task = federation.run_dir, f"tests.kinds:{kind}"
    model = federation.folder / "model.onnx"

    def command(app, *arguments):
        monkeypatch.setattr("sys.argv", ["command", *map(str, arguments), "--task", task])
        assert run_app(app) == 0

    command(export, run, "--format", "onnx", "--output", model)
    with TestClient(create_app(*load_model(model), Batching())) as client:
        shape = client.get("/model").json()["input"]["shape"][1:]
        body = {"inputs": [np.zeros(shape).tolist()] * 2}
        found = client.post("/predict", json=body).json()
    assert [set(answers[0]) for answers in found["predictions"]] == [ANSWERED[kind]] * 2
    assert np.shape(found.get("maps", [])) == ((2, 4, 4) if kind == "Pixels" else (0,))
    command(report, run)
    html = (run / "report" / "report.html").read_text()
    measured = "accuracy" if kind in {"Pixels", "Lazy"} else "loss"
    assert f"Best {measured}" in html
    assert (run / "report" / "convergence.png").exists()


@pytest.mark.full
@pytest.mark.parametrize("kind", [*ANSWERED, "Several", "TwoInputs", "Own"])
def test_the_dashboard_shows_what_each_kind_is(federation, monkeypatch, kind):
    testing = pytest.importorskip("streamlit.testing.v1", reason='needs the extra "full"')
    train(federation, kind)
    run = federation.run_dir
    page = (
        "from pathlib import Path\nfrom scripts.viewing import try_out, views\n"
        f"from scripts.viewing.runs import open_run\nrun = open_run(Path({str(run)!r}))\n"
        "views.learning(run)\nviews.clients(run)\nviews.data(run)\ntry_out.show(run)\n"
    )
    monkeypatch.setattr("sys.argv", ["dashboard", str(run.parent), f"tests.kinds:{kind}"])
    shown = testing.AppTest.from_string(page, default_timeout=60).run()
    assert not shown.exception
    assert not shown.error
    titles = [title.value for title in shown.subheader]
    assert "Loss" in titles
    assert ("Accuracy" in titles) == (kind in {"Pixels", "Lazy", "TwoInputs"})


def test_a_failing_evaluation_is_one_line_and_the_log_has_the_servers_end(federation):
    server = train(federation, "Failing", status=1)
    (error,) = server.errors
    assert "its evaluation raised ZeroDivisionError: no example is light" in error
    last = json_lines(federation.run_dir / "server.jsonl")[-1]
    assert (last["event"], last["reason"]) == ("server failed", error.removeprefix("error: "))


def test_own_metrics_are_wherever_metrics_are(federation):
    train(federation, "Own")
    own = {"global_within_one": 0.5, "client_within_one": 0.5}
    with (federation.run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{name: float(row[name]) for name in own} for row in rows] == [own, own]
    clients = json_lines(federation.run_dir / "clients.jsonl")
    assert [row["validation_metrics"] for row in clients] == [{"within_one": 0.5}] * 4
    log = json_lines(federation.run_dir / "server.jsonl")
    committed = [line for line in log if line["event"] == "round committed"]
    assert [{name: line[name] for name in own} for line in committed] == [own, own]


def test_quickstart_shows_own_metrics_and_no_column_that_nobody_measures(federation):
    flags = ("--task", "tests.kinds:Own", "--rounds", 2, "--num-partitions", 2)
    done = federation.start("scripts.quickstart", *flags, "--run-dir", federation.run_dir)
    assert done.wait() == 0, done.text
    assert "clients' within one" in " ".join(done.text.split())
    assert "within one 0.5000" in done.text
    assert "accuracy" not in done.text
    assert "Final loss on the test set" in done.text


def test_quickstart_shows_the_loss_of_a_regression_once_and_cuts_no_word(federation):
    flags = ("--task", "tests.kinds:Column", "--rounds", 1, "--num-partitions", 1)
    done = federation.start("scripts.quickstart", *flags, "--run-dir", federation.run_dir)
    assert done.wait() == 0, done.text
    first, table, *_ = done.text.split("tests.kinds:Column, 1 round")
    assert ", 1 client, run directory" in first
    assert "mean squared error" not in first
    assert "mean absolute error" in first
    assert "\N{HORIZONTAL ELLIPSIS}" not in table
    # The clients' own stays, whose loss has no column.
    assert table.count("squared") == 1
    assert table.count("absolute") == 2


def test_quickstart_says_whose_data_is_why_there_is_no_update(federation):
    flags = ("--task", "tests.tasks:Holed", "--rounds", 2, "--num-partitions", 1)
    failing = federation.start("scripts.quickstart", *flags, "--run-dir", federation.run_dir)
    assert failing.wait() == 1
    said = [line for line in failing.text.splitlines() if line.startswith("client-0 sends no")]
    assert len(said) == 1
    assert "the inputs of 1 of its 180 examples hold NaN or infinity: mend its data" in said[0]


def test_hyperparameters_make_the_model_at_the_server_and_at_the_clients(federation):
    train(federation, "Sized", "--hyperparameters", '{"width": 5, "dropout": 0.1}')
    assert federation.rows[-1]["accepted"] == 2
