"""What a run directory tells MLflow, and what the server makes of its flags; without MLflow."""

import importlib
import json
import os
import sys
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from common.errors import InputError
from common.tensors import digest_bytes
from server.mlflow_reporting.history import History
from server.mlflow_reporting.launcher import Target, Tracker, target_of
from server.options import TrackingOptions
from server.storage.run_files import RunFiles

GONE = 2**22 + 1  # No process has this number.


class Run:
    """A run directory whose files are written by hand; rounds end at 100, 200 ... seconds."""

    def __init__(self, folder, **options):
        self.folder = folder
        config = {"run_id": "r", "options": options, "versions": {"folkmoot": "1"}}
        (folder / "config.json").write_text(json.dumps(config))
        self.serve(os.getpid())

    def serve(self, pid):
        (self.folder / "server.json").write_text(json.dumps({"pid": pid}))

    def log(self, event, at, **fields):
        line = {"event": event, "timestamp": datetime.fromtimestamp(at, UTC).isoformat(), **fields}
        with (self.folder / "server.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def commit(self, number, logged=True, **metrics):
        row = {"round": number, "duration_seconds": 10.0, **metrics}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if logged:
            self.log("round committed", 100.0 * number, round=number)

    def history(self):
        return History(RunFiles(self.folder))


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path)
    made.log("server started", 1.0)
    return made


def test_a_round_has_the_times_of_the_log_and_the_duration_of_its_row(run):
    run.commit(1)
    run.commit(2)
    rounds = list(run.history().rounds())
    assert [(told.number, told.began, told.ended) for told in rounds] == [
        (1, 90.0, 100.0),
        (2, 190.0, 200.0),
    ]


def test_rounds_that_are_known_are_not_told_again(run):
    history = run.history()
    run.commit(1)
    assert [told.number for told in history.rounds()] == [1]
    run.commit(2)
    assert [told.number for told in history.rounds({1})] == [2]


def test_while_a_run_goes_on_its_last_round_waits_for_its_line_of_the_log(run):
    history = run.history()
    run.commit(1)
    run.commit(2, logged=False)
    assert [told.number for told in history.rounds()] == [1]
    run.log("round committed", 250.0, round=2)
    assert [told.ended for told in history.rounds()] == [100.0, 250.0]


def test_a_round_without_its_line_follows_the_one_before(run):
    run.commit(1)
    run.commit(2, logged=False)
    run.commit(3)
    assert [told.ended for told in run.history().rounds()] == [100.0, 110.0, 300.0]
    run.commit(4, logged=False)
    run.serve(GONE)
    assert [told.ended for told in run.history().rounds()][-1] == 310.0


def test_metrics_are_the_numbers_of_the_row_under_names_that_mlflow_takes(run):
    run.commit(1, accepted=5, global_loss=None, model_blake3="ab", global_metrics={"top 3/µ": 0.5})
    (told,) = run.history().rounds()
    assert told.metrics == {"duration_seconds": 10.0, "accepted": 5.0, "global_top 3__": 0.5}


def test_a_run_goes_on_while_its_server_does(run):
    history = run.history()
    assert history.status == "RUNNING"
    run.serve(GONE)
    assert history.status == "KILLED"


def test_a_run_that_another_server_resumes_is_another_process_to_report(run):
    run.serve(GONE)
    history = run.history()
    run.log("server started", 2.0)
    run.serve(os.getpid())
    assert history.status == "KILLED"
    assert run.history().status == "RUNNING"


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("all rounds done", "FINISHED"),
        ("stopped by an operator", "FINISHED"),
        ("failed", "FAILED"),
    ],
)
def test_the_log_tells_how_a_run_ended(run, reason, status):
    run.log("run ended", 9.0, reason=reason)
    history = run.history()
    assert (history.status, history.began, history.ended) == (status, 1.0, 9.0)
    run.log("server started", 10.0)
    assert history.status == "RUNNING"


def test_parameters_are_the_options_that_a_run_can_not_change(tmp_path):
    options = {"lr": 0.1, "rounds": 5, "run_dir": "runs/r", "tls_key": "k", "quorum": None}
    history = Run(tmp_path, **options).history()
    assert history.parameters() == {"lr": "0.1"}
    assert history.tags()["folkmoot.rounds"] == "5"


@pytest.fixture
def no_variables(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


@pytest.mark.usefixtures("no_variables")
def test_tracking_is_asked_for_by_a_flag_or_by_mlflows_own_variables(monkeypatch):
    # Whether the extra is installed here or not.
    monkeypatch.setattr("server.mlflow_reporting.launcher.require", lambda *_: None)
    assert target_of(TrackingOptions()) is None
    given = TrackingOptions(mlflow_uri="http://a", mlflow_experiment="mine", mlflow_model="best")
    assert target_of(given) == Target("http://a", "mine", "best")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://b")
    assert target_of(TrackingOptions()) == Target("http://b", "folkmoot", None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    assert target_of(TrackingOptions()) == Target("http://b", "theirs", None)
    assert target_of(given) == Target("http://a", "mine", "best")


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"mlflow_uri": "localhost:7027"}, "^--mlflow-uri: that is no URI; say it like http://"),
        ({"mlflow_uri": "http://[::1"}, "^--mlflow-uri: that is no URI"),
        ({"mlflow_model": "best"}, "^--mlflow-model: no MLflow server is named; add --mlflow-uri"),
        ({"mlflow_uri": "http://a", "mlflow_model": "a/b"}, "^--mlflow-model: 'a/b' can't be"),
    ],
)
def test_a_target_that_can_not_be_is_refused_by_name(options, error):
    with pytest.raises(InputError, match=error):
        target_of(TrackingOptions(**options))


@pytest.mark.usefixtures("no_variables")
def test_a_missing_extra_is_refused_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr("common.extras.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r'^--mlflow-uri needs the extra "mlflow": .*install mlflow'
    ):
        target_of(TrackingOptions(mlflow_uri="http://a"))


@pytest.fixture
def best_model(monkeypatch):
    """The class, also where MLflow is not installed."""
    monkeypatch.setitem(sys.modules, "server.mlflow_reporting.runs", SimpleNamespace(Runs=object))
    monkeypatch.delitem(sys.modules, "server.mlflow_reporting.best_model", raising=False)
    yield importlib.import_module("server.mlflow_reporting.best_model").BestModel
    del sys.modules["server.mlflow_reporting.best_model"]


def test_a_run_directorys_task_is_imported_only_if_it_was_named(tmp_path, monkeypatch, best_model):
    data = b"a model"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "best.safetensors").write_bytes(data)
    about = {"blake3": digest_bytes(data).blake3, "size_bytes": len(data)}
    (tmp_path / "strange.py").write_text("from pathlib import Path; Path('imported').touch()")
    monkeypatch.chdir(tmp_path)
    Run(tmp_path, task="strange:Task", model="linear", data_dir="data")

    def export(named):
        best = best_model(RunFiles(tmp_path), tmp_path, named)
        best._about = about
        return best._exported()

    assert not export(None)
    assert not export("other:Task")
    assert not (tmp_path / "imported").exists()
    assert not export("strange:Task")
    assert (tmp_path / "imported").exists()


def test_a_runs_own_server_names_the_task_whose_code_it_runs_itself(tmp_path):
    target = Target("http://a", "mine", None)
    assert Tracker(tmp_path, target, "mine:Task")._flags()[-2:] == ["--task", "mine:Task"]
    assert "--task" not in Tracker(tmp_path, target, "digits")._flags()
