"""Errors that federated.proto names, each with its reason and what else it carries."""

import datetime

import grpc
import pytest

from client.connection import retry_delay
from protos import federated_pb2 as pb
from server.auth import callers
from server.run.limits import MAX_PULLS, Pace
from tests import certs
from tests.service.harness import LiveServer, refusal
from tests.service.test_access import mutual_server


def refused(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert refusal(caught.value)[2] == "federated.v1"
    return caught.value


def test_the_upload_of_no_assignment_is_unknown(tmp_path):
    with LiveServer(tmp_path / "run") as server:
        client = server.join()
        error = refused(lambda: client.uploaded(pb.TaskAssignment(task_token=b"none")))
        assert refusal(error)[:2] == ("NOT_FOUND", "ASSIGNMENT_UNKNOWN")


def test_one_pull_too_many_of_a_session_is_refused_and_the_others_go_on(tmp_path):
    with LiveServer(tmp_path / "run", "tests.tasks:Large") as server:
        client = server.join(task="tests.tasks:Large")
        request = pb.PullModelRequest(session_token=client.token)
        pulls = [server.stub.PullModel(request, timeout=60) for _ in range(MAX_PULLS)]
        assert all(next(pull).HasField("header") for pull in pulls)
        error = refused(lambda: next(server.stub.PullModel(request, timeout=60)))
        assert refusal(error)[:2] == ("RESOURCE_EXHAUSTED", "PULLS_EXCEEDED")
        for pull in pulls[1:]:
            pull.cancel()
        size = server.coordinator.offers.newest_model.digest.size_bytes
        assert sum(len(response.chunk.data) for response in pulls[0]) == size


def test_a_client_that_joins_with_too_many_is_told_when_to_come_again(tmp_path, monkeypatch):
    monkeypatch.setattr(Pace, "admit", lambda *_: 7.5)
    with LiveServer(tmp_path / "run") as server:
        error = refused(server.join)
        assert refusal(error)[:2] == ("RESOURCE_EXHAUSTED", "JOINING_PACED")
        assert retry_delay(error) == 7.5


def test_a_server_that_shuts_down_says_so_to_polls_and_joins(tmp_path):
    with LiveServer(tmp_path / "run") as server:
        client = server.join()
        server.coordinator.status.shutting_down = True
        for call in (client.poll, lambda: server.join("another")):
            assert refusal(refused(call))[:2] == ("UNAVAILABLE", "SHUTTING_DOWN")


def test_a_certificate_that_expires_while_its_connection_is_open_is_refused(tmp_path, monkeypatch):
    folder = certs.make(tmp_path / "certs", clients=1)
    with mutual_server(folder, tmp_path) as server:
        client = server.join("client-0")

        class Later(datetime.datetime):
            @classmethod
            def now(cls, zone=None):
                return super().now(zone) + datetime.timedelta(days=36500)

        monkeypatch.setattr(callers, "datetime", Later)
        error = refused(client.heartbeat)
        assert refusal(error)[:2] == ("UNAUTHENTICATED", "CERTIFICATE_EXPIRED")
