"""A client that is told when to come again comes then, and not sooner."""

import threading

import grpc
import pytest

from client.connection import Connection
from common.errors import RunFailed
from protos import federated_pb2 as pb
from server.rpc.coordinator_service import CoordinatorService
from server.run.limits import Pace
from tests.service.harness import TASK, LiveServer

REQUEST = pb.JoinRequest(client_id="a", instance_id="one", task_names=[TASK])


class Waits(threading.Event):
    """An event that nobody sets; it notes for how long it was waited for, and does not wait."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def wait(self, timeout=None):
        self.seconds.append(timeout)
        return False


def test_a_paced_client_joins_after_the_time_that_it_was_told(tmp_path, monkeypatch):
    told = [7.5, 0.0]
    monkeypatch.setattr(Pace, "admit", lambda *_: told.pop(0))
    stop = Waits()
    with LiveServer(tmp_path / "run") as server:
        connection = Connection(server.address, None, 60.0, stop)
        assert connection.join(REQUEST).session_token
        connection.close()
    assert told == []
    assert len(stop.seconds) == 1
    assert 7.5 <= stop.seconds[0] <= 9.0


def test_a_client_for_which_there_is_never_room_gives_up_with_one_line(tmp_path):
    stop = Waits()
    with LiveServer(tmp_path / "run", max_clients=1, lease=3.0) as server:
        server.join("first", partition=1)
        connection = Connection(server.address, None, 0.5, stop)
        with pytest.raises(RunFailed, match=r"this server's --max-clients"):
            connection.join(REQUEST)
        connection.close()
    assert all(3.0 <= seconds <= 3.6 for seconds in stop.seconds)


def test_a_call_that_a_stopping_server_cancels_is_tried_again(tmp_path, monkeypatch):
    join, cancelled = CoordinatorService.Join, []

    async def cancel_once(service, request, context):
        if not cancelled:
            cancelled.append(True)
            await context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
        return await join(service, request, context)

    monkeypatch.setattr(CoordinatorService, "Join", cancel_once)
    with LiveServer(tmp_path / "run") as server:
        connection = Connection(server.address, None, 60.0, Waits())
        assert connection.join(REQUEST).session_token
        connection.close()
    assert cancelled == [True]
