"""Sessions, leases, long polls and pulls, through a real channel."""

import json
import threading
import time

import grpc
import pytest

from protos import federated_pb2 as pb
from tests.service.harness import TASK, LiveServer, refusal, update


@pytest.fixture
def server(tmp_path):
    with LiveServer(tmp_path / "run") as live:
        yield live


def _refused(call, *arguments, **fields):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **fields)
    return refusal(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": ""}, "FIELD_INVALID"),
        ({"name": "../../etc"}, "FIELD_INVALID"),
        ({"name": "a" * 129}, "FIELD_INVALID"),
        ({"instance": ""}, "FIELD_INVALID"),
        ({"instance": "i" * 65}, "FIELD_INVALID"),
        ({"task": "mnist"}, "TASK_MISMATCH"),
        ({"partition": 5}, "PARTITION_OUT_OF_RANGE"),
        ({"partition": -1}, "PARTITION_OUT_OF_RANGE"),
    ],
)
def test_a_join_that_does_not_fit_is_refused(server, change, reason):
    assert _refused(server.join, **change) == ("INVALID_ARGUMENT", reason, "federated.v1")
    assert server.join().token


def test_a_join_tells_what_is_learned_and_how_the_data_is_split(server):
    joined = server.join().joined
    assert joined.run_id == "run"
    assert joined.task.task_name == TASK
    assert joined.task.model_name == "linear"
    assert joined.task.split.num_partitions == 5
    assert joined.task.split.partitioner == pb.DataSplit.PARTITIONER_IID
    assert joined.max_chunk_size_bytes == 1 << 20
    assert joined.lease_duration.seconds == 30


def test_the_same_instance_gets_the_session_that_it_holds(server):
    assert server.join().token == server.join().token
    assert server.admin.GetRun(pb.GetRunRequest(), timeout=10).run.live_client_count == 1


def test_a_new_instance_ends_the_older_session_and_its_poll(server):
    older = server.join(instance="one")
    refused = []
    poll = threading.Thread(target=lambda: refused.append(_refused(older.poll, 20)))
    poll.start()
    newer = server.join(instance="two")
    poll.join(10)
    assert refused == [("ABORTED", "SESSION_SUPERSEDED", "federated.v1")]
    assert _refused(older.heartbeat)[1] == "SESSION_SUPERSEDED"
    assert newer.heartbeat()
    assert server.admin.GetRun(pb.GetRunRequest(), timeout=10).run.live_client_count == 1


def test_every_method_refuses_an_unknown_session(server):
    client = server.join()
    client.token = "nobody"
    nothing = pb.TaskAssignment(task_token=b"t")
    for call in (
        client.poll,
        client.heartbeat,
        lambda: client.uploaded(nothing),
        lambda: client.pull(pb.ModelRef()),
        lambda: client.push(nothing, update()),
        lambda: client.report(nothing, failure=pb.TaskFailure(reason="X")),
    ):
        assert _refused(call) == ("NOT_FOUND", "SESSION_UNKNOWN", "federated.v1")
    server.stub.Leave(pb.LeaveRequest(session_token="nobody"), timeout=10)


def test_a_lease_runs_out_without_a_sign_of_life(tmp_path):
    with LiveServer(tmp_path / "run", lease=1.0) as server:
        client = server.join()
        assert client.joined.lease_duration.seconds == 1
        server.wait_for(lambda run: run.live_client_count == 1)
        server.wait_for(lambda run: run.live_client_count == 0)
        assert _refused(client.heartbeat)[1] == "SESSION_UNKNOWN"


def test_a_waiting_poll_keeps_its_session_beyond_the_lease(tmp_path):
    with LiveServer(tmp_path / "run", lease=1.0) as server:
        client = server.join()
        # Longer than the lease: polls last 2 s at least.
        assert not client.poll(timeout=5).HasField("assignment")
        assert client.heartbeat()


def test_time_in_which_the_server_did_not_run_is_nobodys_fault(tmp_path):
    """A deadline does not pass in it."""
    with LiveServer(tmp_path / "run", report_deadline=3.0) as server:
        a, b = server.join("a"), server.join("b", partition=1)
        work = {client: client.assignment() for client in (a, b)}
        server._loop.call_soon_threadsafe(time.sleep, 3.5)
        run = server.admin.GetRun(pb.GetRunRequest(), timeout=10).run
        assert (run.live_client_count, run.round.attempt) == (2, 1)
        assert run.round.time_remaining.ToMilliseconds() > 0
        for client in (a, b):
            outcome = client.push(work[client], update()).outcome
            assert outcome == pb.PushUpdateResponse.OUTCOME_ACCEPTED
        # And then it goes on.
        server.wait_for(lambda run: (run.round.number, run.round.attempt) == (2, 2))


def test_a_poll_without_time_is_refused(server):
    client = server.join()
    expected = ("INVALID_ARGUMENT", "DEADLINE_TOO_SHORT", "federated.v1")
    assert _refused(client.poll, None) == expected
    assert _refused(client.poll, 1.5) == expected


def test_an_empty_poll_is_no_error_and_comes_before_the_deadline(server):
    response = server.join().poll(timeout=2.5)
    assert not response.HasField("assignment")
    assert not response.HasField("run_end")


def test_a_second_poll_makes_the_first_return_empty(server):
    client = server.join()
    first = []
    poll = threading.Thread(target=lambda: first.append(client.poll(30)))
    poll.start()
    while poll.is_alive():
        client.poll(2.5)
    assert not first[0].HasField("assignment")


def test_an_assignment_comes_with_every_poll_until_it_is_answered(server):
    client, other = server.join("a"), server.join("b")
    work = client.assignment()
    again = client.assignment()
    assert work.task_token == again.task_token
    assert work.seed == again.seed
    assert work.task_token != other.assignment().task_token
    assert 0 < work.time_remaining.seconds <= 600
    client.push(work, update())
    assert not client.poll(2.5).HasField("assignment")


def test_an_assignment_survives_another_process_of_the_same_client(server):
    client = server.join("a", instance="one")
    server.join("b")
    work = client.assignment()
    assert server.join("a", instance="two").assignment().task_token == work.task_token


def test_a_heartbeat_says_when_the_work_is_not_wanted(server):
    client, _ = server.join("a"), server.join("b")
    work = client.assignment()
    assert not client.heartbeat(work.task_token).cancel_requested
    assert not client.heartbeat().cancel_requested
    assert client.heartbeat(b"other").cancel_requested


def test_a_pull_gives_the_announced_bytes_from_any_offset(server):
    client, _ = server.join("a"), server.join("b")
    model = client.assignment().model
    header, data = client.pull(model)
    assert header == model
    assert len(data) == model.digest.size_bytes
    assert data == (server.folder / "models/global.safetensors").read_bytes()
    for offset in (1, len(data) - 1, len(data)):
        assert client.pull(model, offset)[1] == data[offset:]


def test_a_pull_of_what_is_not_there_is_refused(server):
    client, _ = server.join("a"), server.join("b")
    model = client.assignment().model
    too_far = model.digest.size_bytes + 1
    assert _refused(client.pull, model, too_far)[:2] == ("OUT_OF_RANGE", "READ_OFFSET_TOO_LARGE")
    assert _refused(client.pull, model, -1)[:2] == ("OUT_OF_RANGE", "READ_OFFSET_TOO_LARGE")
    unknown = pb.ModelRef(version=9)
    assert _refused(client.pull, unknown)[:2] == ("NOT_FOUND", "MODEL_UNKNOWN")


def test_a_failure_takes_the_client_out_of_the_round(server):
    client, other = server.join("a"), server.join("b")
    work, others = client.assignment(), other.assignment()
    for _ in range(2):  # A repeat is fine.
        client.report(work, failure=pb.TaskFailure(reason="LOSS_NOT_FINITE"))
    other.push(others, update())
    run = server.wait_for(lambda run: run.model.version == 1)
    ended = server.admin.ListRounds(pb.ListRoundsRequest(), timeout=10).rounds[0]
    assert (ended.accepted_count, ended.dropped_count) == (1, 1)
    failure = pb.TaskFailure(reason="LATE")
    assert _refused(client.report, pb.TaskAssignment(task_token=b"x"), failure=failure)[:2] == (
        "ABORTED",
        "ROUND_CLOSED",
    )
    assert run.round.number == 2


def test_a_repeat_of_a_report_is_fine_although_the_first_one_ended_what_it_is_of(tmp_path):
    """The attempt, the evaluation with its round, and the run: the first answer may be lost."""
    with LiveServer(tmp_path / "run", min_clients=1, rounds=2, client_evaluate_every=1) as server:
        client = server.join("a")
        work = client.assignment()
        for _ in range(2):
            client.report(work, failure=pb.TaskFailure(reason="NO"))
        server.wait_for(lambda run: run.round.attempt == 2)
        assert client.assignment().task_token != work.task_token
        client.report(work, failure=pb.TaskFailure(reason="NO"))
        report = pb.EvaluationReport(num_examples=1, metrics={"loss": 1.0})
        for number in (1, 2):
            client.push(client.assignment(), update())
            work = client.assignment()
            for _ in range(2):
                client.report(work, evaluation=report)
            server.wait_for(lambda run, number=number: run.model.version == number)
            client.report(work, evaluation=report)


def test_results_of_the_wrong_kind_or_out_of_bounds_are_refused(server):
    client, _ = server.join("a"), server.join("b")
    work = client.assignment()
    evaluation = pb.EvaluationReport(num_examples=1, metrics={"loss": 1.0})
    assert _refused(client.report, work, evaluation=evaluation)[1] == "WORK_MISMATCH"
    assert _refused(client.report, work)[1] == "FIELD_INVALID"
    nan = pb.EvaluationReport(num_examples=1, metrics={"loss": float("nan")})
    assert _refused(client.report, work, evaluation=nan)[1] == "FIELD_INVALID"
    negative = pb.EvaluationReport(num_examples=-1)
    assert _refused(client.report, work, evaluation=negative)[1] == "FIELD_INVALID"


def test_clients_evaluate_the_new_model_before_it_is_committed(tmp_path):
    with LiveServer(tmp_path / "run", rounds=1, client_evaluate_every=1) as server:
        clients = [server.join("a"), server.join("b", partition=1)]
        for client in clients:
            client.push(client.assignment(), update())
        for client, count, accuracy in zip(clients, (1, 3), (0.0, 1.0), strict=True):
            work = client.assignment()
            assert work.WhichOneof("work") == "evaluate"
            assert (work.round, work.model.version) == (1, 1)
            assert client.pull(work.model)[0] == work.model
            metrics = {"loss": 2.0, "accuracy": accuracy}
            report = pb.EvaluationReport(num_examples=count, metrics=metrics)
            client.report(work, evaluation=report)
        run = server.wait_for(lambda run: run.state == pb.Run.STATE_SUCCEEDED)
        assert run.round.metrics["client_accuracy"] == 0.75
        assert run.round.metrics["client_loss"] == 2.0
        for client in clients:
            end = client.poll()
            assert end.HasField("run_end")
            assert not end.run_end.failure_message


@pytest.mark.parametrize("alive", [False, True])
def test_a_client_that_does_not_evaluate_holds_its_round_for_a_lease_or_the_deadline(
    tmp_path, alive
):
    """A suspended one no longer than its lease; one that is only slow until --report-deadline."""
    limits = {"lease": 60.0, "report_deadline": 3.0} if alive else {"lease": 2.0}
    with LiveServer(tmp_path / "run", client_evaluate_every=1, **limits) as server:
        quick, slow = server.join("a"), server.join("b")
        for client in (quick, slow):
            client.push(client.assignment(), update())
        work = slow.assignment()
        quick.report(quick.assignment(), evaluation=pb.EvaluationReport(num_examples=1))
        server.wait_for(lambda run: run.model.version == 1)
        if alive:
            assert slow.heartbeat(work.task_token).cancel_requested


def test_a_target_is_not_reached_by_an_accuracy_that_there_is_not(tmp_path):
    options = {"client_evaluate_every": 1, "target_accuracy": 0.9}
    with LiveServer(tmp_path / "run", min_clients=1, **options) as server:
        client = server.join("a")
        client.push(client.assignment(), update())
        work = client.assignment()
        for name in ("accuracy", "fine_tuned_accuracy"):
            lie = pb.EvaluationReport(num_examples=1, metrics={name: 1e9})
            assert _refused(client.report, work, evaluation=lie)[:2] == (
                "INVALID_ARGUMENT",
                "FIELD_INVALID",
            )
        honest = pb.EvaluationReport(num_examples=1, metrics={"accuracy": 0.5, "loss": 1e9})
        client.report(work, evaluation=honest)
        assert server.wait_for(lambda run: run.model.version == 1).round.number == 2


def test_all_clients_evaluate_and_fine_tune_if_they_are_asked_to(tmp_path):
    options = {"client_evaluate_every": 1, "evaluation_clients": "all", "fine_tune_epochs": 3}
    given = {"rounds": 1, "fraction": 0.5, "batch_size": 7, "lr": 0.25}
    with LiveServer(tmp_path / "run", **given, **options) as server:
        clients = {name: server.join(name, n) for n, name in enumerate("ab")}
        server.wait_for(lambda run: run.round.cohort_size == 1)
        (trainer,) = server.coordinator.status.view.cohort
        clients[trainer].push(clients[trainer].assignment(), update())
        for client in clients.values():
            work = client.assignment()
            tuning = work.evaluate.fine_tune
            assert (tuning.local_epochs, tuning.batch_size, tuning.learning_rate) == (3, 7, 0.25)
            metrics = {"accuracy": 0.5, "fine_tuned_accuracy": 0.75}
            client.report(work, evaluation=pb.EvaluationReport(num_examples=4, metrics=metrics))
        run = server.wait_for(lambda run: run.state == pb.Run.STATE_SUCCEEDED)
        assert run.round.metrics["fine_tuning_gain"] == 0.25
        assert run.round.metrics["client_accuracy_p10"] == 0.5
        rows = [json.loads(x) for x in (server.folder / "clients.jsonl").read_text().splitlines()]
        outcomes = {row["client_id"]: row["outcome"] for row in rows}
        assert outcomes == dict.fromkeys("ab", "not_selected") | {trainer: "accepted"}
        assert [row["fine_tuned_accuracy"] for row in rows] == [0.75, 0.75]


def test_each_assignment_names_the_last_round_that_counted_an_update_of_its_client(tmp_path):
    """Under FedAvg, too, and over a restart: a client may keep something of its own by it."""
    folder = tmp_path / "run"
    with LiveServer(folder, rounds=4, client_evaluate_every=1) as server:
        clients = [server.join("a"), server.join("b", partition=1)]
        for number in (1, 2):
            for client in clients:
                work = client.assignment()
                assert (work.round, work.previous_round) == (number, min(number - 1, 1))
                if (client.name, number) == ("b", 2):
                    client.report(work, failure=pb.TaskFailure(reason="NO"))
                else:
                    client.push(work, update())
            for client in clients[: 3 - number]:
                work = client.assignment()
                assert (work.WhichOneof("work"), work.previous_round) == ("evaluate", number)
                client.report(work, evaluation=pb.EvaluationReport(num_examples=1))
        server.wait_for(lambda run: run.model.version == 2)
    with LiveServer(folder, rounds=4, client_evaluate_every=1, resume=True) as server:
        a, b = server.join("a"), server.join("b", partition=1)
        assert [client.assignment().previous_round for client in (a, b)] == [2, 1]


def test_a_run_without_enough_updates_fails_and_tells_the_clients(tmp_path):
    with LiveServer(tmp_path / "run", max_attempts=2) as server:
        clients = [server.join("a"), server.join("b")]
        for attempt in (1, 2):
            for client in clients:
                work = client.assignment()
                client.report(work, failure=pb.TaskFailure(reason="NO"))
            server.wait_for(lambda run, attempt=attempt: len(_ended(server)) == attempt)
        assert "--max-attempts" in clients[0].poll().run_end.failure_message
        assert _refused(server.join)[:2] == ("FAILED_PRECONDITION", "RUN_ENDED")
        assert [r.phase for r in _ended(server)] == [pb.Round.PHASE_ABANDONED] * 2


def _ended(server):
    return server.admin.ListRounds(pb.ListRoundsRequest(), timeout=10).rounds


def test_a_partition_is_held_by_one_client_at_a_time(server):
    """Its examples would count twice."""
    first = server.join("a", partition=1)
    server.join("b", partition=2)
    with pytest.raises(grpc.RpcError) as caught:
        server.join("twin", partition=1)
    assert refusal(caught.value)[:2] == ("FAILED_PRECONDITION", "PARTITION_TAKEN")
    assert "is held by client 'a'" in caught.value.details()
    assert "its lease of 30 s runs out" in caught.value.details()
    server.join("a", partition=1, instance="two")
    server.stub.Leave(pb.LeaveRequest(session_token=first.token), timeout=10)
    assert _refused(server.join, "twin", 1)[1] == "PARTITION_TAKEN"
    moved = server.join("a", partition=3, instance="three")
    assert server.join("twin", partition=1).token
    assert moved.token


def test_where_each_client_keeps_all_of_its_data_a_partition_only_numbers_it(tmp_path):
    with LiveServer(tmp_path / "run", partitioner="none") as server:
        a, b = server.join("a", partition=0), server.join("b", partition=0)
        assert a.assignment().task_token != b.assignment().task_token


def test_who_did_not_hear_of_the_end_is_told_by_the_restarted_server(tmp_path):
    folder = tmp_path / "run"
    with LiveServer(folder, rounds=1) as server:
        for client in [server.join("a"), server.join("b", partition=1)]:
            client.push(client.assignment(), update())
        server.wait_for(lambda run: run.state == pb.Run.STATE_SUCCEEDED)
    with LiveServer(folder, rounds=1, resume=True) as server:
        sessions = server.coordinator.sessions
        assert sessions.awaited == {"a", "b"}
        for name, left in (("a", {"b"}), ("b", set())):
            assert _refused(lambda name=name: server.join(name))[1] == "RUN_ENDED"
            assert sessions.awaited == left


def test_what_was_on_its_way_when_a_pull_broke_is_counted(server):
    client, _ = server.join("a"), server.join("b")
    work = client.assignment()
    whole = client.pull(work.model)[1]
    assert server.coordinator.status.ledger.bytes_resent == 0
    assert client.pull(work.model, offset=len(whole) - 60)[1] == whole[-60:]
    assert server.coordinator.status.ledger.bytes_resent == 60
    # Another start from the beginning is no resumption.
    client.pull(work.model)
    assert server.coordinator.status.ledger.bytes_resent == 60
