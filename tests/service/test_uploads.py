"""One clear outcome for each upload, the model untouched by bad ones, and the server up."""

import grpc
import pytest
import torch

from common.tensors import views
from protos import federated_pb2 as pb
from tests.service.harness import OUTCOME, LiveServer, refusal, update

NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture
def pair(tmp_path):
    """Two clients with training work, and their server; the round wants both updates."""
    with LiveServer(tmp_path / "run") as server:
        first, second = server.join("a"), server.join("b", partition=1)
        yield server, (first, first.assignment()), (second, second.assignment())


def _model(server):
    return server.admin.GetRun(pb.GetRunRequest(), timeout=10).run.model


INVALID = {
    "a wrong name": {"data": update(bias=None, bios=torch.ones(3))},
    "a missing tensor": {"data": update(bias=None)},
    "one tensor too many": {"data": update(extra=torch.ones(1))},
    "a wrong shape": {"data": update(weight=torch.ones(4, 3))},
    "a wrong dtype": {"data": update(weight=torch.ones(3, 4, dtype=torch.float64))},
    "NaN": {"data": update(weight=torch.full((3, 4), NAN))},
    "infinity": {"data": update(bias=torch.full((3,), -INFINITY))},
    "no safetensors": {"data": b"\xff" * 100},
    "nothing": {"data": b""},
    "too many bytes": {"data": bytes(1 << 20)},
    "less than no bytes": {"data": update(), "digest": pb.Digest(blake3="", size_bytes=-1)},
    "no examples": {"data": update(), "num_examples": 0},
    "a negative number of examples": {"data": update(), "num_examples": -5},
    "a metric that is NaN": {"data": update(), "metrics": {"loss": NAN}},
    "another base version": {"data": update(), "base_model": pb.ModelRef(version=7)},
    "another base digest": {"data": update(), "base_model": pb.ModelRef(version=0)},
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_update_is_refused_once_and_for_all_and_changes_nothing(pair, case):
    server, (client, assignment), (other, other_assignment) = pair
    before = _model(server)
    response = client.push(assignment, **INVALID[case])
    assert OUTCOME.Name(response.outcome) == "OUTCOME_INVALID"
    assert response.message
    # A valid one comes too late: the first outcome counts.
    assert client.push(assignment, update()).outcome == OUTCOME.OUTCOME_INVALID
    assert _model(server) == before
    # The other's update alone is a quorum of this round, so the run goes on without this one.
    assert other.push(other_assignment, update()).outcome == OUTCOME.OUTCOME_ACCEPTED
    run = server.wait_for(lambda run: run.model.version == 1)
    assert run.model.digest != before.digest
    ended = server.admin.ListRounds(pb.ListRoundsRequest(), timeout=10).rounds[0]
    assert (ended.accepted_count, ended.refused_count, ended.dropped_count) == (1, 1, 0)


def test_a_wrong_digest_resets_the_upload_and_the_right_one_is_accepted(pair):
    server, (client, assignment), _ = pair
    data = update()
    wrong = pb.Digest(blake3="0" * 64, size_bytes=len(data))
    response = client.push(assignment, data, digest=wrong)
    assert response.outcome == OUTCOME.OUTCOME_DIGEST_MISMATCH
    assert response.upload.committed_size_bytes == 0
    assert client.push(assignment, data).outcome == OUTCOME.OUTCOME_ACCEPTED


def test_an_update_cut_short_is_not_accepted(pair):
    _, (client, assignment), _ = pair
    data = update()
    announced = client.push(assignment, data, chunk_size=64, stop_after=1)
    assert announced.outcome == OUTCOME.OUTCOME_OFFSET_MISMATCH
    assert announced.upload.committed_size_bytes == 64
    short = pb.Digest(blake3="0" * 64, size_bytes=len(data) + 1)
    finished_early = client.push(assignment, data, digest=short)
    assert finished_early.outcome == OUTCOME.OUTCOME_DIGEST_MISMATCH


def test_a_broken_upload_goes_on_where_it_stopped(pair):
    server, (client, assignment), _ = pair
    data = update()
    client.push(assignment, data, chunk_size=50, stop_after=2)
    held = client.uploaded(assignment)
    assert (held.committed_size_bytes, held.complete) == (100, False)
    response = client.push(assignment, data, write_offset=held.committed_size_bytes)
    assert response.outcome == OUTCOME.OUTCOME_ACCEPTED
    assert client.uploaded(assignment).complete


@pytest.mark.parametrize("offset", [-1, 1, 99, 101, 2**62])
def test_a_wrong_offset_is_told_the_right_one(pair, offset):
    _, (client, assignment), _ = pair
    data = update()
    client.push(assignment, data, chunk_size=50, stop_after=2)
    header = client.header(assignment, data, write_offset=offset)
    response = client.server.stub.PushUpdate(
        iter([pb.PushUpdateRequest(header=header)]), timeout=10
    )
    assert response.outcome == OUTCOME.OUTCOME_OFFSET_MISMATCH
    assert response.upload.committed_size_bytes == 100


def test_an_update_sent_twice_counts_once_and_gets_the_first_answer(pair):
    server, (client, assignment), (other, other_assignment) = pair
    for _ in range(2):
        assert client.push(assignment, update(1.0)).outcome == OUTCOME.OUTCOME_ACCEPTED
    assert server.admin.GetRun(pb.GetRunRequest(), timeout=10).run.round.accepted_count == 1
    assert other.push(other_assignment, update(3.0)).outcome == OUTCOME.OUTCOME_ACCEPTED
    server.wait_for(lambda run: run.model.version == 1)
    # The round is over, and still the first answer stands.
    assert client.push(assignment, update(1.0)).outcome == OUTCOME.OUTCOME_ACCEPTED


def test_an_update_for_a_closed_round_is_not_wanted(tmp_path):
    with LiveServer(tmp_path / "run", report_goal=1) as server:
        first, second = server.join("a"), server.join("b", partition=1)
        late = second.assignment()
        assert first.push(first.assignment(), update()).outcome == OUTCOME.OUTCOME_ACCEPTED
        run = server.wait_for(lambda run: run.model.version == 1)
        response = second.push(late, update(5.0))
        assert response.outcome == OUTCOME.OUTCOME_NOT_WANTED
        assert _model(server) == run.model
        assert second.heartbeat(late.task_token).cancel_requested
        # It is selected again in the next round.
        assert second.assignment().round == 2


def test_a_half_sent_update_learns_that_the_round_was_closed(tmp_path):
    with LiveServer(tmp_path / "run", report_goal=1) as server:
        first, second = server.join("a"), server.join("b", partition=1)
        late, data = second.assignment(), update(5.0)
        second.push(late, data, chunk_size=50, stop_after=1)
        first.push(first.assignment(), update())
        server.wait_for(lambda run: run.model.version == 1)
        response = second.push(late, data, write_offset=50)
        assert response.outcome == OUTCOME.OUTCOME_NOT_WANTED


def test_another_clients_task_token_is_not_wanted_and_changes_nothing(pair):
    server, (client, assignment), (other, other_assignment) = pair
    response = other.push(assignment, update())
    assert response.outcome == OUTCOME.OUTCOME_NOT_WANTED
    assert client.push(assignment, update()).outcome == OUTCOME.OUTCOME_ACCEPTED


def test_a_newer_stream_ends_the_older_one(pair):
    server, (client, assignment), _ = pair
    data = update()
    sent = []

    def half():
        yield pb.PushUpdateRequest(header=client.header(assignment, data))
        yield pb.PushUpdateRequest(chunk=pb.Chunk(offset=0, data=data[:50]))
        while client.uploaded(assignment).committed_size_bytes < 50:
            pass
        sent.append(client.push(assignment, data, write_offset=50))
        yield pb.PushUpdateRequest(chunk=pb.Chunk(offset=50, data=data[50:], finish_write=True))

    older = server.stub.PushUpdate(half(), timeout=20)
    assert sent[0].outcome == OUTCOME.OUTCOME_ACCEPTED
    # The one whose last chunk comes after the end hears how the upload ended.
    assert older.outcome == OUTCOME.OUTCOME_ACCEPTED


def test_the_first_message_must_be_the_header(pair):
    server, *_ = pair
    messages = [pb.PushUpdateRequest(chunk=pb.Chunk(data=b"x"))]
    for sent in (messages, []):
        response = server.stub.PushUpdate(iter(sent), timeout=10)
        assert response.outcome == OUTCOME.OUTCOME_INVALID


def test_an_unknown_session_is_a_status_before_any_chunk(pair):
    server, (client, assignment), _ = pair
    with pytest.raises(grpc.RpcError) as caught:
        client.push(assignment, update(), stop_after=0, session_token="nobody")
    assert refusal(caught.value) == ("NOT_FOUND", "SESSION_UNKNOWN", "federated.v1")


def test_the_weighted_mean_of_the_accepted_updates_is_the_new_model(pair):
    server, (client, assignment), (other, other_assignment) = pair
    path = server.folder / "models" / "global.safetensors"
    header, before = client.pull(assignment.model)
    assert path.read_bytes() == before
    client.push(assignment, update(1.0), num_examples=1)
    other.push(other_assignment, update(5.0), num_examples=3)
    server.wait_for(lambda run: run.model.version == 1)

    old, new = (views(memoryview(bytearray(data))) for data in (before, path.read_bytes()))
    for name in old:
        assert torch.equal(new[name], (old[name].double() + 4.0).float())


def test_a_client_that_is_slow_in_every_round_does_not_hold_the_run(tmp_path):
    flags = {"fraction": 0.67, "over_select": 1.5, "min_clients": 3, "rounds": 3}
    with LiveServer(tmp_path / "run", **flags) as server:
        slow, *others = [server.join(name, partition=n) for n, name in enumerate("abc")]
        for number in (1, 2, 3):
            late = slow.assignment()
            assert late.round == number
            for client in others:
                assert client.push(client.assignment(), update()).outcome == (
                    OUTCOME.OUTCOME_ACCEPTED
                )
            server.wait_for(lambda run, number=number: run.model.version == number)
            assert slow.push(late, update()).outcome == OUTCOME.OUTCOME_NOT_WANTED
        ended = server.admin.ListRounds(pb.ListRoundsRequest(), timeout=10).rounds
        assert [(r.cohort_size, r.report_goal, r.accepted_count) for r in ended] == [(3, 2, 2)] * 3


@pytest.mark.parametrize(("size", "outcome"), [(1 << 20, "ACCEPTED"), ((1 << 20) + 1, "INVALID")])
def test_a_chunk_has_at_most_the_announced_size(tmp_path, size, outcome):
    task = "scripts.resilience.tasks:Steps"
    with LiveServer(tmp_path / "run", task, min_clients=1) as server:
        client = server.join(task=task)
        assert client.joined.max_chunk_size_bytes == 1 << 20
        work = client.assignment()
        _, model = client.pull(work.model)
        start = 8 + int.from_bytes(model[:8], "little")
        response = client.push(work, model[:start] + bytes(len(model) - start), chunk_size=size)
        assert OUTCOME.Name(response.outcome) == f"OUTCOME_{outcome}"
        assert ("a chunk of" in response.message) == (outcome == "INVALID")
