"""Runs that are reported to a real MLflow server, which is there, away, silent or killed."""

import json
import os
import shlex
import signal
import socket
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from common.tasks.digits import Digits, cnn
from common.tensors import open_mapped
from server.storage.run_files import numbers
from tests.e2e.harness import Process, until

psutil = pytest.importorskip("psutil", reason='needs the extra "full"')

GATED = "tests.tasks:Gated"
# An MLflow server and a graph's export take their time on a busy machine.
PATIENCE = 900.0

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore"),  # MLflow's own.
]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


class Mlflow:
    """./scripts/tracking, and a client of it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        self.process = Process(
            self.folder / "mlflow.log",
            *("scripts.tracking", "--folder", self.folder / "store", "--port", self.port),
        )
        begun = self.process.text.count("Ctrl-C ends it")
        self.patiently(lambda: self.process.text.count("Ctrl-C ends it") > begun, "MLflow")

    def patiently(self, probe, what):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self.process.popen.poll() is None, self.process.text
            try:
                return until(probe, what)
            except AssertionError:
                continue
        raise AssertionError(f"waited in vain for {what}")

    def children(self):
        return psutil.Process(self.process.popen.pid).children(recursive=True)

    def kill(self):
        """Kill it as `kill -9` does, with all its processes."""
        for process in self.children():
            process.kill()
        assert self.process.wait() == 1

    @property
    def client(self):
        os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        return mlflow.MlflowClient(self.uri)

    def parents(self, experiment):
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            return []
        runs = self.client.search_runs([found.experiment_id], max_results=1000)
        return [run for run in runs if "mlflow.parentRunId" not in run.data.tags]

    def rounds(self, parent):
        """Return the children by round; each round has one."""
        runs = self.client.search_runs(
            [parent.info.experiment_id],
            f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'",
            max_results=1000,
        )
        found = {int(run.data.tags["folkmoot.round"]): run for run in runs}
        assert len(found) == len(runs)
        return found

    def check(self, federation, experiment="folkmoot"):
        """Check that a run which has ended is there, all of it and once; return its parent."""
        (parent,) = self.parents(experiment)
        assert parent.info.status == "FINISHED"
        rows = {row["round"]: row for row in federation.rows}
        children = self.rounds(parent)
        assert children.keys() == rows.keys()
        steps = {}
        for number, row in rows.items():
            child = children[number]
            expected = {name: value for name, value in numbers(row).items() if name != "round"}
            # Of a round that the server was killed after, the file does not know it any more.
            extra = child.data.metrics.keys() - expected.keys()
            assert extra <= {"commit_seconds"}
            assert child.data.metrics | expected == child.data.metrics
            assert child.info.status == "FINISHED"
            assert child.info.run_name == f"round {number:05d}"
            milliseconds = child.info.end_time - child.info.start_time
            assert abs(milliseconds / 1000 - row["duration_seconds"]) < 0.01
            for name, value in child.data.metrics.items():
                steps.setdefault(name, []).append((number, value))
        for name, expected in steps.items():
            history = self.client.get_metric_history(parent.info.run_id, name)
            assert sorted((m.step, m.value) for m in history) == sorted(expected), name
        return parent


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory):
    started = Mlflow(tmp_path_factory.mktemp("mlflow"))
    started.start()
    yield started
    started.process.end()


@pytest.fixture
def own_mlflow(tmp_path):
    folder = tmp_path / "mlflow"
    folder.mkdir()
    started = Mlflow(folder)
    started.start()
    yield started
    started.process.end()


def train(federation, *flags, task="digits", clients=2, rounds=3, **environment):
    """Start a server and its clients."""
    server = federation.server(
        *("--rounds", rounds, "--num-partitions", clients, "--min-clients", clients, *flags),
        task=task,
        **environment,
    )
    return server, [federation.client(part, task=task, **environment) for part in range(clients)]


def best_round(federation):
    return json.loads((federation.run_dir / "models" / "best.json").read_text())["round"]


def models(mlflow, parent):
    """Return the models of a run's experiment by the run that they belong to."""
    found = mlflow.client.search_logged_models([parent.info.experiment_id])
    assert len({model.source_run_id for model in found}) == len(found)
    return {model.source_run_id: model for model in found}


def test_a_run_is_in_mlflow_with_its_rounds_and_its_best_model(federation, mlflow, tmp_path):
    uri = mlflow.uri.replace("://", "://ann:not-for-you@")
    flags = ("--mlflow-uri", uri, "--mlflow-experiment", "whole", "--mlflow-model", "digits")
    server, clients = train(federation, *flags)
    tracker = until(
        lambda: psutil.Process(server.popen.pid).children(), "the process that reports"
    )[0]
    assert "not-for-you" not in " ".join(tracker.cmdline())
    assert server.wait(PATIENCE) == 0, server.text
    assert [client.wait() for client in clients] == [0, 0]
    parent = mlflow.check(federation, "whole")

    assert parent.info.run_name == "run"
    assert parent.data.params["lr"] == "0.1"
    assert parent.data.params["strategy"] == "fedavg"
    assert not {"run_dir", "data_dir", "bind", "tls_key", "mlflow_uri"} & parent.data.params.keys()
    assert parent.data.tags["folkmoot.data_split"] == "dirichlet, alpha 0.5, 2 partitions"
    assert parent.data.tags["folkmoot.strategy"] == "fedavg"

    best = mlflow.rounds(parent)[best_round(federation)]
    logged = models(mlflow, parent)
    assert logged.keys() == {best.info.run_id}
    model_id = logged[best.info.run_id].model_id
    (version,) = mlflow.client.search_model_versions("name = 'digits'")
    assert (version.source, version.run_id) == (f"models:/{model_id}", best.info.run_id)
    check_model(federation, f"models:/{model_id}", tmp_path / "downloaded")

    for path in [server.output, *federation.run_dir.rglob("*")]:
        assert path.is_dir() or b"not-for-you" not in path.read_bytes(), path

    # Longer: the same runs go on, and the model is there again only if another is the best.
    resumed, _ = train(federation, "--mlflow-uri", mlflow.uri, "--resume", rounds=4)
    assert resumed.wait(PATIENCE) == 0, resumed.text
    assert mlflow.check(federation, "whole").info.run_id == parent.info.run_id
    versions = mlflow.client.search_model_versions("name = 'digits'")
    assert len(versions) == len(models(mlflow, parent))
    best_now = mlflow.rounds(parent)[best_round(federation)]
    assert models(mlflow, parent).keys() == {best.info.run_id, best_now.info.run_id}


def check_model(federation, uri, folder):
    """Check that a logged model gives the run's model's outputs, and is no pickle."""
    import mlflow.artifacts
    import mlflow.onnx
    import mlflow.pyfunc

    torch.set_num_threads(1)
    model = cnn()
    model.load_state_dict(open_mapped(federation.run_dir / "models" / "best.safetensors"))
    inputs = Digits().data(Path(), train=False).inputs[:50]
    with torch.inference_mode():
        expected = model.eval()(inputs).numpy()
    loaded = mlflow.pyfunc.load_model(uri)
    (outputs,) = loaded.predict(inputs.numpy()).values()
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    assert [output.name for output in mlflow.onnx.load_model(uri).graph.output] == ["output"]
    signature = loaded.metadata.signature
    assert signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    assert signature.outputs.inputs[0].shape == (-1, 10)
    assert loaded.metadata.load_input_example().shape == (1, 1, 8, 8)
    local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    assert "onnxruntime==" in (local / "requirements.txt").read_text()
    kinds = {path.suffix for path in local.rglob("*") if path.is_file()}
    assert kinds <= {"", ".onnx", ".yaml", ".txt", ".json"}


@contextmanager
def gate_of(federation):
    """Yield what lets the clients train, and keeps them from it."""
    gate = federation.folder / "gate"

    def let(rounds):
        """Let that many rounds be committed, or a few more; return how many there are."""
        before = len(federation.rows) if (federation.run_dir / "metrics.jsonl").exists() else 0
        gate.touch()
        until(
            lambda: (
                (federation.run_dir / "metrics.jsonl").exists()
                and len(federation.rows) >= before + rounds
            ),
            "rounds",
        )
        gate.unlink()
        return len(federation.rows)

    yield gate, let
    gate.touch()


def test_a_killed_mlflow_server_delays_no_round_and_gets_them_all_later(federation, own_mlflow):
    with gate_of(federation) as (gate, let):
        server, clients = train(
            federation, "--mlflow-uri", own_mlflow.uri, task=GATED, rounds=60, GATE=str(gate)
        )
        committed = let(2)
        own_mlflow.patiently(
            lambda: [p for p in own_mlflow.parents("folkmoot") if own_mlflow.rounds(p)],
            "the first rounds",
        )
        own_mlflow.kill()
        assert let(5) >= committed + 5
        until(lambda: server.events("MLflow does not answer; it is tried again"), "the log")
        let(2)
        own_mlflow.start()
    assert server.wait(PATIENCE) == 0, server.text
    assert [client.wait() for client in clients] == [0, 0]
    assert len(federation.rows) == 60
    assert not server.events("the run is not completely reported to MLflow")
    parent = own_mlflow.check(federation)
    assert len(models(own_mlflow, parent)) == 1
    for name in ("server_cpu_utilization_percentage", "server_memory_usage_megabytes"):
        assert parent.data.metrics[f"system/{name}"] >= 0


def test_a_run_whose_server_was_killed_goes_on_in_the_same_mlflow_runs(federation, mlflow):
    flags = ("--mlflow-uri", mlflow.uri, "--mlflow-experiment", "resumed")
    with gate_of(federation) as (gate, let):
        server, clients = train(federation, *flags, task=GATED, rounds=8, GATE=str(gate))
        let(2)
        (first,) = mlflow.patiently(lambda: mlflow.parents("resumed"), "the parent")
        server.signal(signal.SIGKILL)
        server.wait()
        mlflow.patiently(
            lambda: mlflow.client.get_run(first.info.run_id).info.status == "KILLED", "the end"
        )
        assert mlflow.rounds(first).keys() == {row["round"] for row in federation.rows}
        again = federation.server("--resume", bind=federation.address, task=GATED, GATE=str(gate))
        mlflow.patiently(
            lambda: mlflow.client.get_run(first.info.run_id).info.status == "RUNNING", "the run"
        )
    assert again.wait(PATIENCE) == 0, again.text
    assert [client.wait() for client in clients] == [0, 0]
    parent = mlflow.check(federation, "resumed")
    assert parent.info.run_id == first.info.run_id
    assert len(models(mlflow, parent)) == 1


@pytest.mark.parametrize("silent", [False, True])
def test_an_mlflow_server_that_never_answers_is_given_up_and_can_be_told_later(
    federation, mlflow, silent
):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        if silent:  # Connections are made, and then nothing.
            nobody.listen()
        uri = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        server, _ = train(federation, "--mlflow-uri", uri, task="tests.tasks:Tiny")
        assert server.wait(PATIENCE) == 0, server.text
    (ended,) = server.events("run ended")
    (warning,) = server.events("the run is not completely reported to MLflow")
    waited = np.datetime64(warning["timestamp"][:-1]) - np.datetime64(ended["timestamp"][:-1])
    # Half a minute, a call, the farewell; on a busy machine the import of MLflow.
    assert waited < np.timedelta64(150, "s")

    command = shlex.split(warning["fill_in"])
    assert command[:3] == ["python", "-m", "server.tracking"]
    experiment = f"later-{silent}"
    command[command.index("--mlflow-experiment") + 1] = experiment
    command[command.index("--mlflow-uri") + 1] = mlflow.uri
    for _ in range(2):  # The second time, it finds all there.
        filled = federation.start(*command[2:], fresh=True)
        assert filled.wait(PATIENCE) == 0, filled.text
        parent = mlflow.check(federation, experiment)
        assert len(models(mlflow, parent)) == 1


def test_a_model_that_can_not_leave_torch_is_there_as_safetensors(federation, mlflow):
    flags = ("--local-layers", "norm", "--evaluate-every", "0", "--partitioner", "iid")
    where = ("--mlflow-uri", mlflow.uri, "--mlflow-experiment", "half")
    server, _ = train(federation, *flags, *where, task="tests.tasks:Normalised")
    assert server.wait(PATIENCE) == 0, server.text
    parent = mlflow.check(federation, "half")
    best = mlflow.rounds(parent)[best_round(federation)]
    (file,) = mlflow.client.list_artifacts(best.info.run_id, "model")
    assert file.path == "model/best.safetensors"
    assert file.file_size == (federation.run_dir / "models/best.safetensors").stat().st_size
    assert any("can't be exported" in line for line in server.text.splitlines())


def test_ctrl_c_ends_all_processes_of_the_tracking_script(tmp_path):
    mlflow = Mlflow(tmp_path)
    mlflow.start()
    children = mlflow.children()
    assert children
    mlflow.process.signal(signal.SIGINT)
    assert mlflow.process.wait() == 0
    psutil.wait_procs(children, timeout=10)
    assert not [child for child in children if child.is_running()]
