"""What somebody without a session may hold: unfinished requests, connections, and for how long."""

import threading
import time
from contextlib import suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.connection import Connection, Stopped
from common.errors import RunFailed
from protos import federated_pb2 as pb
from server.rpc import connections, interceptors
from server.run.limits import MAX_STREAMS, MAX_UNFINISHED, STRANGER_BYTES
from tests.http2 import Http2, unfinished
from tests.service.harness import TASK, LiveServer, refusal
from tests.service.test_pace import Waits

METHODS = [
    "/federated.v1.Coordinator/Join",
    "/federated.v1.Coordinator/PushUpdate",
    "/federated.v1.Coordinator/PullModel",
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]


def until(probe, connection, seconds=20):
    end = time.monotonic() + seconds
    while not probe():
        assert time.monotonic() < end
        connection.receive(0.05)


@pytest.mark.parametrize("method", METHODS)
def test_a_request_that_is_not_finished_in_time_is_ended(tmp_path, monkeypatch, method):
    monkeypatch.setattr(interceptors, "UNFINISHED_SECONDS", 0.2)
    with LiveServer(tmp_path / "run") as server:
        connection = Http2(server.address)
        stream = connection.open(method)
        connection.send(stream, unfinished(1000))
        until(lambda: stream in connection.ended, connection)
        connection.close()


def test_whose_header_is_late_is_told_to_try_again(tmp_path, monkeypatch):
    monkeypatch.setattr(interceptors, "UNFINISHED_SECONDS", 0.2)
    ended = threading.Event()

    def nothing():
        ended.wait(30)
        yield from ()

    with LiveServer(tmp_path / "run") as server:
        call = server.stub.PushUpdate.future(nothing(), timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            call.result()
        ended.set()
    assert refusal(caught.value)[:2] == ("UNAVAILABLE", "REQUEST_UNFINISHED")


@pytest.mark.parametrize("admin", [False, True])
def test_the_newest_unfinished_request_takes_the_oldests_place(tmp_path, admin):
    with LiveServer(tmp_path / "run") as server:
        connection = Http2(server.admin_address if admin else server.address)
        streams = []
        for _ in range(MAX_UNFINISHED + 2):
            streams.append(connection.open("/grpc.health.v1.Health/Check"))
            connection.send(streams[-1], unfinished(1000))
        until(lambda: set(streams[:2]) <= connection.ended, connection)
        assert set(streams[2:]).isdisjoint(connection.ended)
        connection.close()


def test_nobody_can_watch_a_servers_health_for_as_long_as_they_like(tmp_path):
    with LiveServer(tmp_path / "run") as server:
        watch = health_pb2_grpc.HealthStub(server.channel).Watch
        with pytest.raises(grpc.RpcError) as caught:
            next(watch(health_pb2.HealthCheckRequest(), timeout=10))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_operators_methods_read_nothing_of_a_stranger(tmp_path):
    with LiveServer(tmp_path / "run") as server:
        connection = Http2(server.admin_address)
        stream = connection.open("/federated.v1.Admin/GetRun")
        until(lambda: stream in connection.ended, connection)
        connection.close()


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"])
def test_an_old_connection_is_closed_unless_it_has_a_session(tmp_path, monkeypatch, bind):
    monkeypatch.setattr(connections, "STRANGER_SECONDS", 0.5)
    options = {"insecure": True} if bind.startswith("0.") else {}
    with LiveServer(tmp_path / "run", bind=bind, **options) as server:
        client = server.join()
        beats = []
        idle = Http2(server.address)
        poll = server.stub.PollTaskAssignment.future(
            pb.PollTaskAssignmentRequest(session_token=client.token), timeout=8
        )
        until(lambda: idle.closed, idle)
        # Twice as long as a stranger may stay: a connection that is shut fails the poll.
        since = time.monotonic()
        while time.monotonic() < since + 1.0:
            beats.append(client.heartbeat())
        assert not poll.done()
        poll.cancel()
        # Operators, as well.
        server.admin.GetRun(pb.GetRunRequest(), timeout=10)
        idle.close()


def test_a_stranger_that_sends_much_is_closed(tmp_path):
    with LiveServer(tmp_path / "run") as server:
        connection = Http2(server.address)
        while not connection.closed and connection.sent < 100 * STRANGER_BYTES:
            stream = connection.open("/grpc.health.v1.Health/Check")
            connection.send(stream, unfinished(1 << 15))
            connection.receive(0.001)
        assert connection.closed
        connection.close()


def test_of_many_strangers_the_oldest_are_closed():
    seen = {n: connections.Stranger(float(n), 0) for n in range(connections.MAX_STRANGERS + 3)}
    assert connections.overdue(seen, 5.0) == [0, 1, 2]


def test_more_clients_than_a_connection_has_streams_wait_at_once(tmp_path):
    many = MAX_STREAMS + 4
    with LiveServer(tmp_path / "run", min_clients=many + 1, num_partitions=many + 1) as server:
        stop = threading.Event()
        connection = Connection(server.address, None, 20.0, stop)

        def take_part(number):
            request = pb.JoinRequest(
                client_id=f"c{number}", instance_id="one", task_names=[TASK], partition=number
            )
            with suppress(Stopped):
                connection.poll(connection.join(request).session_token, 15.0)

        threads = [threading.Thread(target=take_part, args=(n,)) for n in range(many)]
        for thread in threads:
            thread.start()
        sessions, end = server.coordinator.sessions, time.monotonic() + 10
        while sum(s.waiter is not None for s in list(sessions.by_client.values())) < many:
            assert time.monotonic() < end
            time.sleep(0.05)
        stop.set()
        connection.close()
        for thread in threads:
            thread.join()


def test_a_message_that_is_too_large_is_not_sent_again(tmp_path):
    with LiveServer(tmp_path / "run") as server:
        connection = Connection(server.address, None, 60.0, Waits())
        chunk = pb.PushUpdateRequest(chunk=pb.Chunk(data=bytes(2 << 20)))
        with pytest.raises(RunFailed, match="RESOURCE_EXHAUSTED"):
            connection._call(lambda: server.stub.PushUpdate(iter([chunk]), timeout=10))
        connection.close()
