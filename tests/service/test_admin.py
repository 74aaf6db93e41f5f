"""The Admin service, health, reflection and the ports, through real channels."""

import queue

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from common.errors import InputError
from protos import federated_pb2 as pb
from protos import federated_pb2_grpc as pb_grpc
from tests.e2e.harness import until
from tests.service.harness import LiveServer, refusal, update


def _round(*clients):
    for client in clients:
        client.push(client.assignment(), update())


def test_get_run_shows_the_run_from_waiting_to_its_end(tmp_path):
    with LiveServer(tmp_path / "run", rounds=1) as server:
        run = server.admin.GetRun(pb.GetRunRequest(), timeout=10).run
        assert run.state == pb.Run.STATE_WAITING
        assert (run.run_id, run.target_round_count, run.model.version) == ("run", 1, 0)
        a, b = server.join("a"), server.join("b")
        a.assignment()
        run = server.admin.GetRun(pb.GetRunRequest(), timeout=10).run
        assert run.state == pb.Run.STATE_ACTIVE
        assert run.round.phase == pb.Round.PHASE_REPORTING
        assert (run.round.cohort_size, run.round.report_goal, run.live_client_count) == (2, 2, 2)
        _round(a, b)
        run = server.wait_for(lambda run: run.state == pb.Run.STATE_SUCCEEDED)
        assert run.round.phase == pb.Round.PHASE_COMMITTED
        assert run.model.version == 1


def test_list_rounds_pages_from_the_newest(tmp_path):
    with LiveServer(tmp_path / "run", rounds=3) as server:
        a, b = server.join("a"), server.join("b")
        for number in (1, 2, 3):
            _round(a, b)
            server.wait_for(lambda run, number=number: run.model.version == number)
        first = server.admin.ListRounds(pb.ListRoundsRequest(page_size=2), timeout=10)
        assert [r.number for r in first.rounds] == [3, 2]
        assert first.rounds[0].metrics["num_examples"] == 20
        request = pb.ListRoundsRequest(page_size=2, page_token=first.next_page_token)
        second = server.admin.ListRounds(request, timeout=10)
        assert [r.number for r in second.rounds] == [1]
        assert not second.next_page_token


@pytest.mark.parametrize(
    "fields",
    # Python refuses to make a number of more than 4300 digits.
    [{"page_size": -1}, {"page_size": 1001}, {"page_token": "x"}, {"page_token": "1" * 5000}],
)
def test_list_rounds_refuses_fields_out_of_bounds(tmp_path, fields):
    with LiveServer(tmp_path / "run") as server:
        with pytest.raises(grpc.RpcError) as caught:
            server.admin.ListRounds(pb.ListRoundsRequest(**fields), timeout=10)
        assert refusal(caught.value)[:2] == ("INVALID_ARGUMENT", "FIELD_INVALID")


def test_watch_run_sends_the_state_again_when_nothing_changes(tmp_path):
    with LiveServer(tmp_path / "run") as server:
        request = pb.WatchRunRequest()
        request.keepalive_interval.seconds = 1
        call = server.admin.WatchRun(request, timeout=20)
        first, second = next(call), next(call)
        assert first == second
        call.cancel()


def test_stop_run_ends_the_run_after_the_round_as_a_success(tmp_path):
    with LiveServer(tmp_path / "run", rounds=100) as server:
        a, b = server.join("a"), server.join("b")
        work = a.assignment()
        for _ in range(2):
            stopping = server.admin.StopRun(pb.StopRunRequest(), timeout=10).run
            assert stopping.state == pb.Run.STATE_STOPPING
        a.push(work, update())
        b.push(b.assignment(), update())
        run = server.wait_for(lambda run: run.state == pb.Run.STATE_SUCCEEDED)
        assert run.model.version == 1
        assert a.poll().HasField("run_end")
        with pytest.raises(grpc.RpcError) as caught:
            server.admin.StopRun(pb.StopRunRequest(), timeout=10)
        assert refusal(caught.value)[:2] == ("FAILED_PRECONDITION", "RUN_ENDED")


def test_stop_run_ends_a_run_that_waits_for_clients_at_once(tmp_path):
    with LiveServer(tmp_path / "run") as server:
        client = server.join()
        run = server.admin.StopRun(pb.StopRunRequest(), timeout=10).run
        assert run.state == pb.Run.STATE_FAILED
        assert "no model was trained" in client.poll().run_end.failure_message
        # Only the model that the clients would have been given.
        assert {path.stem for path in (server.folder / "models").iterdir()} == {"global"}


def test_an_order_to_stop_that_can_not_be_stored_is_refused_and_the_run_goes_on(tmp_path):
    with LiveServer(tmp_path / "run") as server:
        in_the_way = server.folder / "stop.json.tmp"
        in_the_way.mkdir()
        with pytest.raises(grpc.RpcError) as caught:
            server.admin.StopRun(pb.StopRunRequest(), timeout=10)
        assert refusal(caught.value)[:2] == ("RESOURCE_EXHAUSTED", "ORDER_NOT_STORED")
        run = server.admin.GetRun(pb.GetRunRequest(), timeout=10).run
        assert run.state == pb.Run.STATE_WAITING
        in_the_way.rmdir()
        assert server.admin.StopRun(pb.StopRunRequest(), timeout=10)


def test_both_ports_answer_health_checks_and_describe_their_service(tmp_path):
    with LiveServer(tmp_path / "run") as server:
        for channel, service in (
            (server.channel, "federated.v1.Coordinator"),
            (server.admin_channel, "federated.v1.Admin"),
        ):
            health = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=service)
            status = health.Check(request, timeout=10).status
            assert status == health_pb2.HealthCheckResponse.SERVING
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            answer = next(iter(reflection.ServerReflectionInfo(iter([asked]), timeout=10)))
            names = {found.name for found in answer.list_services_response.service}
            assert service in names


def test_clients_find_no_admin_service_on_their_port(tmp_path):
    with LiveServer(tmp_path / "run") as server:
        with pytest.raises(grpc.RpcError) as caught:
            pb_grpc.AdminStub(server.channel).StopRun(pb.StopRunRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_port_in_use_is_refused_by_the_name_of_the_flag(tmp_path):
    with LiveServer(tmp_path / "first") as server:
        taken = server.address
        second = LiveServer(tmp_path / "second", bind=taken)
        with pytest.raises(InputError, match="--bind: can't listen on " + taken):
            second.__enter__()
        # Nothing was begun that would stand in the way of a second try.
        assert not (tmp_path / "second").exists()


def _clients(server, **request):
    return server.admin.ListClients(pb.ListClientsRequest(**request), timeout=10)


def _states(server):
    name = pb.Client.State.Name
    return {c.client_id: name(c.state).removeprefix("STATE_") for c in _clients(server).clients}


def test_list_clients_shows_what_each_client_does_in_a_round(tmp_path):
    with LiveServer(tmp_path / "run", num_partitions=3, min_clients=3, quorum=2) as server:
        a, b = (server.join(name, index) for index, name in enumerate("ab"))
        assert _states(server) == dict.fromkeys("ab", "WAITING")
        c = server.join("c", 2)  # With whom the round begins.
        work = {client.name: client.assignment() for client in (a, b, c)}
        assert _states(server) == dict.fromkeys("abc", "TRAINING")
        _, model = a.pull(work["a"].model)
        a.push(work["a"], update())
        b.push(work["b"], update(), chunk_size=50, stop_after=1)
        server.stub.Leave(pb.LeaveRequest(session_token=c.token), timeout=10)
        ends = {"a": "DONE", "b": "TRAINING", "c": "LOST"}
        # The server reads the broken stream when it comes to it.
        until(lambda: _states(server) == ends and _clients(server).clients[1].bytes_up, ends)
        first, second, third = _clients(server).clients
        assert (first.num_examples, first.train_loss, first.partition) == (10, 1.0, 0)
        assert (first.bytes_down, first.bytes_up) == (len(model), len(update()))
        assert not second.HasField("num_examples")
        assert second.bytes_up == 50
        assert third.partition == 2
        assert 0 <= third.state_duration.ToMilliseconds() < 10_000
        run = server.admin.GetRun(pb.GetRunRequest(), timeout=10).run
        assert 590 < run.round.time_remaining.ToMilliseconds() / 1000 <= 600


def test_a_client_whose_work_failed_is_shown_as_failed_until_the_attempt_ends(tmp_path):
    with LiveServer(tmp_path / "run") as server:
        a, _ = server.join("a"), server.join("b")
        a.report(a.assignment(), failure=pb.TaskFailure(reason="NO"))
        assert _states(server) == {"a": "FAILED", "b": "TRAINING"}


def test_a_clients_state_follows_what_happens_before_its_next_call(tmp_path):
    with LiveServer(tmp_path / "run", min_clients=3, client_evaluate_every=1) as server:
        a, b, c = (server.join(name, index) for index, name in enumerate("abc"))
        work = {client.name: client.assignment() for client in (a, b, c)}
        requests = queue.SimpleQueue()
        requests.put(pb.PushUpdateRequest(header=b.header(work["b"], update())))
        pushing = server.stub.PushUpdate.future(iter(requests.get, None))
        assert until(lambda: _states(server)["b"] == "PUSHING", "b to push")
        pushing.cancel()
        assert until(lambda: _states(server)["b"] == "TRAINING", "b to push no more")
        for client in (a, b):
            client.push(work[client.name], update())
        c.push(work["c"], update(bias=None))
        server.wait_for(lambda run: run.round.phase == pb.Round.PHASE_EVALUATING)
        assert _states(server) == {"a": "EVALUATING", "b": "EVALUATING", "c": "FAILED"}
        a.report(a.assignment(), evaluation=pb.EvaluationReport(num_examples=1))
        assert _states(server) == {"a": "DONE", "b": "EVALUATING", "c": "FAILED"}
        b.report(b.assignment(), evaluation=pb.EvaluationReport(num_examples=1))
        server.wait_for(lambda run: run.round.number == 2)
        assert until(lambda: _states(server) == dict.fromkeys("abc", "TRAINING"), "new work")
        server.join("a", instance="two")
        assert _states(server)["a"] == "TRAINING"


def test_what_a_client_trained_last_is_known_in_rounds_without_it(tmp_path):
    with LiveServer(tmp_path / "run", rounds=9) as server:
        a, b = server.join("a"), server.join("b")
        _round(a, b)
        server.wait_for(lambda run: run.round.number == 2)
        assert a.assignment().round == 2
        assert [client.num_examples for client in _clients(server).clients] == [10, 10]


def test_list_clients_pages_by_client_id(tmp_path):
    with LiveServer(tmp_path / "run", min_clients=9, num_partitions=9) as server:
        for name in ("c", "a", "b"):
            server.join(name)
        first = _clients(server, page_size=2)
        assert [client.client_id for client in first.clients] == ["a", "b"]
        server.join("aa")  # One who comes in between moves no page.
        second = _clients(server, page_size=2, page_token=first.next_page_token)
        assert [client.client_id for client in second.clients] == ["c"]
        assert not second.next_page_token


@pytest.mark.parametrize(
    "fields", [{"page_size": -1}, {"page_size": 1001}, {"page_token": "x" * 129}]
)
def test_list_clients_refuses_fields_out_of_bounds(tmp_path, fields):
    with LiveServer(tmp_path / "run") as server:
        with pytest.raises(grpc.RpcError) as caught:
            _clients(server, **fields)
        assert refusal(caught.value)[:2] == ("INVALID_ARGUMENT", "FIELD_INVALID")
