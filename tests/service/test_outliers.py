"""One client's update is far too long: it is left out of the mean, and everyone is told."""

import json

import pytest
import torch

from common.tensors import open_mapped
from protos import federated_pb2 as pb
from tests.service.harness import OUTCOME, LiveServer, update

HUGE = 1e9
VALUES = {"a": 1.0, "b": HUGE, "c": 3.0}
OPTIONS = {"min_clients": 3, "rounds": 1, "max_attempts": 1}


def push(server, names):
    """Join all clients, and let some of them push; return the clients."""
    clients = {name: server.join(name, partition=n) for n, name in enumerate(VALUES)}
    for name in names:
        pushed = clients[name].push(
            clients[name].assignment(), update(VALUES[name]), scalars={"num_steps": 1}
        )
        assert pushed.outcome == OUTCOME.OUTCOME_ACCEPTED
    return clients


def moved(server):
    """Return by how much the model's values changed."""
    first, last = (
        open_mapped(path)["bias"]
        for path in (server.initial, server.folder / "models" / "global.safetensors")
    )
    return (last - first).mean().item()


@pytest.fixture
def run(tmp_path):
    def begin(**options):
        server = LiveServer(tmp_path / "run", **OPTIONS | options)
        server.initial = tmp_path / "initial.safetensors"
        return server

    return begin


def keep_initial(server):
    model = server.coordinator.offers.newest_model
    server.initial.write_bytes(model.path.read_bytes())


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.parametrize(
    "strategy", ["fedavg", "fedavgm", "fedprox", "scaffold", "fednova", "trimmed-mean"]
)
def test_it_does_not_count_and_the_records_and_the_log_say_so(run, strategy, capsys):
    with run(strategy=strategy, local_epochs=1) as server:
        keep_initial(server)
        push(server, VALUES)
        ended = server.wait_for(lambda run: run.model.version == 1).round
        assert (ended.accepted_count, ended.refused_count, ended.dropped_count) == (2, 1, 0)
    assert moved(server) == pytest.approx(2.0)
    clients = rows(server.folder, "clients.jsonl")
    assert [row["outcome"] for row in clients] == ["accepted", "refused", "accepted"]
    # Of the 15 values of an update.
    assert [row["update_norm"] for row in clients] == pytest.approx(
        [15**0.5 * value for value in VALUES.values()]
    )
    assert clients[1]["share"] is None
    row = rows(server.folder, "metrics.jsonl")[0]
    assert (row["accepted"], row["refused"], row["num_examples"]) == (2, 1, 20)


def test_without_the_guard_it_counts(run):
    with run(max_norm_ratio=0.0) as server:
        keep_initial(server)
        push(server, VALUES)
        server.wait_for(lambda run: run.model.version == 1)
    assert moved(server) > HUGE / 4


@pytest.mark.parametrize("first", ["ab", "bc", "b", "ac"])
def test_killed_and_resumed_the_same_update_is_left_out(tmp_path, run, first):
    with run() as server:
        keep_initial(server)
        push(server, VALUES)
        server.wait_for(lambda run: run.model.version == 1)
    undisturbed = (server.folder / "models" / "global.safetensors").read_bytes()
    folder = tmp_path / "again"
    with LiveServer(folder, **OPTIONS) as server:
        push(server, first)
    with LiveServer(folder, **OPTIONS, resume=True) as server:
        assert server.coordinator.status.view.accepted == set(first)
        push(server, set(VALUES) - set(first))
        server.wait_for(lambda run: run.model.version == 1)
    assert (folder / "models" / "global.safetensors").read_bytes() == undisturbed


def test_a_client_that_was_left_out_has_contributed_nothing(run):
    with run(strategy="scaffold", rounds=2) as server:
        clients = push(server, VALUES)
        previous = [clients[name].assignment().previous_round for name in "abc"]
        assert previous == [1, 0, 1]


def test_without_a_quorum_beside_it_the_round_is_abandoned(run):
    with run(quorum=3) as server:
        push(server, VALUES)
        ended = server.wait_for(lambda run: run.state == pb.Run.STATE_FAILED)
        assert "1 updates are longer than 100 times the median" in ended.failure_message
        assert "--max-norm-ratio" in ended.failure_message
        assert "with 2 of the 3 updates that a quorum needs" in ended.failure_message
        summary = server.admin.ListRounds(pb.ListRoundsRequest(), timeout=10).rounds[0]
        assert (summary.accepted_count, summary.refused_count) == (2, 1)


def test_an_accepted_update_keeps_its_norm(run):
    with run() as server:
        push(server, "ab")
        records = sorted(server.coordinator.directory.updates_folder(1).glob("*.json"))
        norms = sorted(json.loads(path.read_text())["norm"] for path in records)
    expected = [torch.full((15,), VALUES[name]).double().norm().item() for name in "ab"]
    assert norms == pytest.approx(expected)
