"""One clear outcome for each upload, the model untouched by bad ones, and the server up."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import torch

from common.encodings import plain
from common.tensors import views
from protos import federated_pb2 as pb
from tests.e2e.harness import json_lines, until
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


@pytest.fixture
def held(monkeypatch):
    """Validation waits for `go`, once, after it said `reached`; then it looks at all values."""
    check, once, reached, go = plain.check_finite, [True], threading.Event(), threading.Event()

    def wait_and_check(tensors):
        if once and once.pop():
            reached.set()
            assert go.wait(30)
        return check(tensors)

    monkeypatch.setattr(plain, "check_finite", wait_and_check)
    return reached, go


@pytest.fixture
def pool():
    with ThreadPoolExecutor(3) as threads:
        yield threads


OTHERS = {
    "no bytes": (b"", "OUTCOME_INVALID"),
    "fewer bytes": (update(5.0)[:-1], "OUTCOME_INVALID"),
    "more bytes": (update(5.0) + b"x", "OUTCOME_INVALID"),
    "as many bytes": (update(5.0), "OUTCOME_ACCEPTED"),
}


@pytest.mark.parametrize("end", ["validated first", "comes first"])
@pytest.mark.parametrize("case", OTHERS)
def test_other_bytes_take_over_while_the_first_are_validated(pair, held, pool, case, end):
    server, (client, assignment), (other, other_assignment) = pair
    (reached, go), (data, outcome) = held, OTHERS[case]
    older = pool.submit(client.push, assignment, update(1.0))
    assert reached.wait(10)
    announced, follow = threading.Event(), threading.Event()

    def newer_stream():
        yield pb.PushUpdateRequest(header=client.header(assignment, data))
        announced.set()
        assert follow.wait(30)
        yield pb.PushUpdateRequest(chunk=pb.Chunk(data=data, finish_write=True))

    newer = pool.submit(server.stub.PushUpdate, newer_stream(), timeout=30)
    assert announced.wait(10)
    until(lambda: client.uploaded(assignment).committed_size_bytes == 0, "the header to arrive")
    if end == "comes first":
        follow.set()
    go.set()
    told = older.result(30)
    assert (told.outcome, told.upload.complete) == (OUTCOME.OUTCOME_OFFSET_MISMATCH, False)
    assert told.message == "a newer stream took over"
    follow.set()
    assert OUTCOME.Name(newer.result(30).outcome) == outcome
    assert client.push(assignment, data).outcome == newer.result().outcome
    other.push(other_assignment, update(3.0))
    run = server.wait_for(lambda run: run.model.version == 1)
    assert run.state == pb.Run.STATE_ACTIVE
    row = json_lines(server.folder / "metrics.jsonl")[0]
    assert row["accepted"] == (2 if outcome == "OUTCOME_ACCEPTED" else 1)


def test_what_is_validated_when_its_round_is_closed_is_not_wanted(tmp_path, held, pool):
    reached, go = held
    with LiveServer(tmp_path / "run", report_goal=1) as server:
        first, second = server.join("a"), server.join("b", partition=1)
        work = second.assignment()
        late = pool.submit(first.push, first.assignment(), update(5.0))
        assert reached.wait(10)
        assert second.push(work, update(1.0)).outcome == OUTCOME.OUTCOME_ACCEPTED
        server.wait_for(lambda run: run.model.version == 1)
        next_work = first.assignment()
        go.set()
        assert late.result(30).outcome == OUTCOME.OUTCOME_NOT_WANTED
        # It settled nothing, and left nothing behind.
        assert first.push(next_work, update(1.0)).outcome == OUTCOME.OUTCOME_ACCEPTED


def test_an_upload_is_validated_to_its_end_though_its_stream_is_cut(pair, held):
    _, (client, assignment), _ = pair
    reached, go = held
    data = update()
    chunk = pb.Chunk(data=data, finish_write=True)
    messages = [
        pb.PushUpdateRequest(header=client.header(assignment, data)),
        pb.PushUpdateRequest(chunk=chunk),
    ]
    call = client.server.stub.PushUpdate.future(iter(messages), timeout=30)
    assert reached.wait(10)
    call.cancel()
    go.set()
    assert client.push(assignment, data, write_offset=len(data)).outcome == (
        OUTCOME.OUTCOME_ACCEPTED
    )


def test_the_newest_header_of_an_upload_counts(pair):
    server, (client, assignment), (other, other_assignment) = pair
    data = update()
    client.push(assignment, data, chunk_size=50, stop_after=1, num_examples=1)
    client.push(assignment, data, write_offset=50, num_examples=900, metrics={"loss": 2.0})
    other.push(other_assignment, data, num_examples=100, metrics={"loss": 1.0})
    server.wait_for(lambda run: run.model.version == 1)
    row = json_lines(server.folder / "metrics.jsonl")[0]
    assert (row["num_examples"], row["train_loss"]) == (1000, 1.9)


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 63 + "é"])
def test_a_digest_that_can_be_nobodys_is_invalid_before_any_chunk(pair, digest):
    _, (client, assignment), _ = pair
    data = update()
    wrong = pb.Digest(blake3=digest, size_bytes=len(data))
    response = client.push(assignment, data, stop_after=0, digest=wrong)
    assert response.outcome == OUTCOME.OUTCOME_INVALID
    assert response.upload.complete
    assert response.message == "digest.blake3 must be 64 lower-case hexadecimal digits"


def test_the_first_message_must_be_the_header(pair):
    server, (client, assignment), _ = pair
    messages = [pb.PushUpdateRequest(chunk=pb.Chunk(data=b"x"))]
    for sent in (messages, []):
        with pytest.raises(grpc.RpcError) as caught:
            server.stub.PushUpdate(iter(sent), timeout=10)
        assert refusal(caught.value)[:2] == ("INVALID_ARGUMENT", "HEADER_MISSING")
    assert client.push(assignment, update()).outcome == OUTCOME.OUTCOME_ACCEPTED


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
