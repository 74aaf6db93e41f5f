"""Bytes that are no message of a method are the caller's mistake, in each kind of call."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from protos import federated_pb2 as pb
from tests.service.harness import LiveServer, refusal, update

NO_MESSAGE = b"\xff\xff\xff"
BAD_STRING = b"\x0a\x02\xff\xfe"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with LiveServer(tmp_path_factory.mktemp("edge") / "run") as live:
        yield live


def _send(channel, kind, method, data):
    call = getattr(channel, kind)(method, None, None)
    return call(data, timeout=10) if kind == "unary_unary" else list(call(data, timeout=10))


@pytest.mark.parametrize("data", [NO_MESSAGE, BAD_STRING])
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("unary_unary", "/federated.v1.Coordinator/Join"),
        ("unary_unary", "/grpc.health.v1.Health/Check"),
        ("unary_stream", "/federated.v1.Coordinator/PullModel"),
        ("stream_stream", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
    ],
)
def test_bytes_that_are_no_message_are_refused_as_invalid(server, kind, method, data):
    with pytest.raises(grpc.RpcError) as caught:
        _send(server.channel, kind, method, iter([data]) if kind == "stream_stream" else data)
    assert refusal(caught.value) == ("INVALID_ARGUMENT", "MESSAGE_INVALID", "federated.v1")


def test_an_upload_with_a_part_that_is_no_message_is_refused_as_invalid(server):
    client = server.join()
    server.join("client-1", partition=1)
    data = update()
    header = pb.PushUpdateRequest(header=client.header(client.assignment(), data))
    push = server.channel.stream_unary("/federated.v1.Coordinator/PushUpdate", None, None)
    for parts in ([NO_MESSAGE], [header.SerializeToString(), NO_MESSAGE]):
        with pytest.raises(grpc.RpcError) as caught:
            push(iter(parts), timeout=10)
        assert refusal(caught.value)[:2] == ("INVALID_ARGUMENT", "MESSAGE_INVALID")


def test_what_gives_up_its_call_itself_is_no_bug(server):
    stub = health_pb2_grpc.HealthStub(server.channel)
    with capture_logs() as logs:
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="unknown"), timeout=10)
        # The server is done with the first call by the time it has answered the second.
        stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert not logs
