"""A client that lies has one clear outcome for each lie, and the others' round goes on."""

import grpc
import pytest
import torch

from common.tensors import encode, views
from protos import federated_pb2 as pb
from tests.service.harness import OUTCOME, LiveServer, refusal, update

LIMITS = {"max_examples": 1000, "max_update_norm": 50.0, "max_share": 0.5}


@pytest.fixture
def trio(tmp_path):
    with LiveServer(tmp_path / "run", min_clients=3, **LIMITS) as server:
        clients = [server.join(name, partition=n) for n, name in enumerate("abc")]
        yield server, [(client, client.assignment()) for client in clients]


LIES = {
    "2^62 examples": ({"num_examples": 2**62}, "--max-examples"),
    "one example too many": ({"num_examples": 1001}, "--max-examples"),
    "no examples": ({"num_examples": 0}, "num_examples"),
    "minus 2^63 examples": ({"num_examples": -(2**63)}, "num_examples"),
    "an enormous norm": ({"data": update(1e30)}, "L2 norm"),
    "a metric of NaN": ({"metrics": {"loss": float("nan")}}, "finite"),
    "33 metrics": ({"metrics": {str(n): 1.0 for n in range(33)}}, "more than 32"),
    "a metric with a long name": ({"metrics": {"x" * 65: 1.0}}, "name"),
    "a size of 2^62": ({"digest": pb.Digest(blake3="0" * 64, size_bytes=2**62)}, "the limit is"),
    "a negative size": ({"digest": pb.Digest(blake3="0" * 64, size_bytes=-1)}, "the limit is"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_an_update_is_refused_and_the_others_make_the_round(trio, lie):
    server, [(liar, work), *others] = trio
    changes, why = LIES[lie]
    response = liar.push(work, **{"data": update(), **changes})
    assert response.outcome == OUTCOME.OUTCOME_INVALID
    assert why in response.message
    for client, assignment in others:
        assert client.push(assignment, update()).outcome == OUTCOME.OUTCOME_ACCEPTED
    assert server.wait_for(lambda run: run.model.version == 1).round is not None
    ended = server.admin.ListRounds(pb.ListRoundsRequest(), timeout=10).rounds[0]
    assert (ended.accepted_count, ended.refused_count) == (2, 1)


def test_what_a_client_may_claim_is_bounded_by_its_share(trio):
    server, [(first, work), (second, other), (third, last)] = trio
    before = first.pull(work.model)[1]
    first.push(work, update(4.0), num_examples=1000)
    second.push(other, update(0.0), num_examples=10)
    third.push(last, update(1.0), num_examples=10)
    server.wait_for(lambda run: run.model.version == 1)
    path = server.folder / "models" / "global.safetensors"
    old, new = (views(memoryview(bytearray(data))) for data in (before, path.read_bytes()))
    # Half of the weight is the first one's, and not 98 %.
    expected = (old["bias"].double() + 2.25).float()
    assert torch.equal(new["bias"], expected)


def test_the_limits_are_announced(trio):
    _, [(client, _), *_] = trio
    announced = client.joined.limits
    assert (announced.max_num_examples, announced.max_update_norm) == (1000, 50.0)
    assert (announced.max_metrics, announced.max_metric_name_length) == (32, 64)
    assert announced.max_concurrent_pulls > 0


def test_updates_that_overflow_together_are_no_model_and_the_run_says_so(tmp_path):
    with LiveServer(tmp_path / "run", max_attempts=1, server_lr=10.0) as server:
        clients = [server.join("a"), server.join("b", partition=1)]
        for client in clients:
            client.push(client.assignment(), update(3e38))
        run = server.wait_for(lambda run: run.state == pb.Run.STATE_FAILED)
        assert "overflows" in run.failure_message
        assert "--max-update-norm" in run.failure_message
        assert run.model.version == 0


def test_an_integer_can_neither_end_a_run_nor_be_moved_out_of_its_range(tmp_path):
    task, most = "tests.tasks:Normalised", 2**63 - 1
    options = {"task": task, "min_clients": 1, "rounds": 3, "max_update_norm": 1.0}
    with LiveServer(tmp_path / "run", **options) as server:
        liar = server.join("a", task=task)

        def work_and_update(counter):
            work = liar.assignment()
            tensors = views(memoryview(bytearray(liar.pull(work.model)[1])))
            update = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
            update["norm.num_batches_tracked"] += counter
            return work, encode(update)

        # The first is the largest integer there is; 20 is what an honest client counts.
        for counter in (most, 20):
            response = liar.push(*work_and_update(counter))
            assert response.outcome == OUTCOME.OUTCOME_ACCEPTED
        server.wait_for(lambda run: run.model.version == 2)
        response = liar.push(*work_and_update(2**62))
        assert response.outcome == OUTCOME.OUTCOME_INVALID
        assert "'norm.num_batches_tracked': the base model plus the update" in response.message
        path = server.folder / "models" / "global.safetensors"
        counted = views(memoryview(bytearray(path.read_bytes())))["norm.num_batches_tracked"]
        assert counted.item() == most - 1023


def test_one_client_too_many_is_told_when_to_come_again(tmp_path):
    with LiveServer(tmp_path / "run", max_clients=2, lease=7.0) as server:
        server.join("a")
        server.join("b")
        with pytest.raises(grpc.RpcError) as caught:
            server.join("c")
        assert refusal(caught.value)[:2] == ("RESOURCE_EXHAUSTED", "CLIENTS_FULL")


def test_a_session_that_leaves_pulls_open_takes_nothing_from_another(trio):
    server, [(client, work), (other, other_work), _] = trio
    request = pb.PullModelRequest(session_token=client.token, model_version=9)
    for _ in range(20):
        with pytest.raises(grpc.RpcError) as caught:
            next(server.stub.PullModel(request, timeout=5))
        assert refusal(caught.value)[1] == "MODEL_UNKNOWN"
    assert other.pull(other_work.model)[0] == other_work.model


@pytest.mark.parametrize("strategy", ["scaffold", "fednova"])
@pytest.mark.parametrize("steps", [None, 0, -1, 1.5, 15, 2**62])
def test_steps_that_can_not_have_been_are_refused_where_they_count(tmp_path, strategy, steps):
    options = {"strategy": strategy, "local_epochs": 2, "batch_size": 8}
    with LiveServer(tmp_path / "run", min_clients=1, **options) as server:
        client = server.join("a")
        scalars = {} if steps is None else {"num_steps": steps}
        response = client.push(client.assignment(), update(), num_examples=50, scalars=scalars)
        assert response.outcome == OUTCOME.OUTCOME_INVALID
        # Two epochs of seven batches.
        assert "num_steps must be 1 to 14" in response.message


def test_scaffolds_control_variate_is_pulled_beside_its_model(tmp_path):
    with LiveServer(tmp_path / "run", min_clients=1, rounds=2, strategy="scaffold") as server:
        client = server.join("a")
        work = client.assignment()
        assert work.previous_round == 0
        assert (work.train.algorithm.name, not work.train.algorithm.payloads) == ("scaffold", True)
        pull = {"session_token": client.token, "payload_name": "control"}
        with pytest.raises(grpc.RpcError) as caught:
            list(server.stub.PullModel(pb.PullModelRequest(model_version=0, **pull), timeout=9))
        assert refusal(caught.value)[:2] == ("NOT_FOUND", "MODEL_UNKNOWN")
        client.push(work, update(), num_examples=50, scalars={"num_steps": 1})
        work = client.assignment()
        assert work.previous_round == 1
        size = work.train.algorithm.payloads["control"].size_bytes
        chunks = server.stub.PullModel(pb.PullModelRequest(model_version=1, **pull), timeout=9)
        assert sum(len(chunk.chunk.data) for chunk in chunks) == size > 0
