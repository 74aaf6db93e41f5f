"""Layers that stay at the client: two clients of this process, and a server on a real port."""

import threading
from types import SimpleNamespace

import pytest
import torch

from client.connection import Connection
from client.progress import StepProgress
from client.runner import ProcessContext, PulledModel, Runner
from client.state import ClientState
from client.trainer import Trainer
from common.tasks import load_task
from common.tensors import open_mapped, views
from protos import federated_pb2 as pb
from tests.service.harness import LiveServer

TASK = "tests.tasks:Normalised"
SHARED = {"linear.weight", "linear.bias"}
LOCAL = {f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
LOCAL.add("norm.num_batches_tracked")


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_they_never_travel_and_each_client_goes_on_from_its_own(tmp_path, monkeypatch):
    pushed, evaluated = [], []
    push, evaluate = Connection.push, Trainer.evaluate

    def see_push(connection, session, token, base, update, *rest):
        pushed.append(set(views(update)))
        return push(connection, session, token, base, update, *rest)

    def see_evaluation(trainer, base, *rest):
        evaluated.append({name: base[name].clone() for name in LOCAL})
        return evaluate(trainer, base, *rest)

    monkeypatch.setattr(Connection, "push", see_push)
    monkeypatch.setattr(Trainer, "evaluate", see_evaluation)
    options = {"local_layers": "norm", "client_evaluate_every": 1, "partitioner": "shards"}
    with LiveServer(tmp_path / "run", TASK, rounds=2, num_partitions=2, **options) as server:
        stop = threading.Event()
        connection = Connection(server.address, None, 30.0, stop)
        process = ProcessContext(
            connection, [TASK], [0, 1], tmp_path, tmp_path / "state", "cpu", stop, StepProgress()
        )
        runners = [Runner(process, f"client-{number}", number) for number in (0, 1)]
        threads = [threading.Thread(target=runner.run) for runner in runners]
        for thread in threads:
            thread.start()
        server.ended()
        for thread in threads:
            thread.join(30)
        connection.close()
    assert pushed == [SHARED] * 4
    assert open_mapped(tmp_path / "run" / "models" / "global.safetensors").keys() == SHARED
    kept = [ClientState(tmp_path / "state", "run", f"client-{n}-layers").load(2) for n in (0, 1)]
    for own in kept:
        assert own.keys() == LOCAL
        # Ninety examples in batches of eight, in two rounds.
        assert own["norm.num_batches_tracked"].item() == 24
        assert any(same(own, found) for found in evaluated[2:])
    assert not torch.equal(kept[0]["norm.running_mean"], kept[1]["norm.running_mean"])


@pytest.fixture
def client(tmp_path):
    trainer = Trainer(load_task(TASK), "mlp", "cpu", LOCAL)
    runner = Runner(SimpleNamespace(state_dir=tmp_path), "a", 0, run_id="run")
    state = ClientState(tmp_path, "run", "a-layers")

    def layers(number, previous, **work):
        """Return the bias of the layer that is used, which was the number of its round."""
        work = work or {"train": pb.TrainWork()}
        assignment = pb.TaskAssignment(round=number, previous_round=previous, **work)
        model = PulledModel(memoryview(b""), {"linear.bias": torch.zeros(3)})
        found = runner._with_own_layers(model, assignment, trainer)
        assert found.keys() == LOCAL | {"linear.bias"}
        return found["norm.bias"][0].item()

    def train(number, previous):
        layers = {name: torch.full_like(t, number) for name, t in trainer.initial_layers.items()}
        state.save(number, layers, previous)

    return layers, train


def test_training_goes_on_from_the_round_that_was_counted(client):
    layers, train = client
    train(1, 0)
    train(2, 1)  # Came too late.
    assert layers(3, previous=1) == 1.0
    assert layers(3, previous=2) == 2.0


def test_an_evaluation_takes_what_was_counted_also_in_its_own_round(client):
    layers, train = client
    evaluate = {"evaluate": pb.EvaluateWork()}
    train(1, 0)
    train(3, 1)
    assert layers(3, previous=3, **evaluate) == 3.0
    assert layers(3, previous=1, **evaluate) == 1.0  # Its update of round 3 came too late.


def test_who_has_lost_it_begins_again_and_says_so(client, capsys):
    layers, train = client
    assert layers(1, previous=0) == 0.0
    train(1, 0)
    assert layers(2, previous=0) == 0.0  # It was not counted.
    assert layers(7, previous=6) == 0.0
    assert "what was kept is lost" in "".join(capsys.readouterr())
