"""Following a run, and the exit status of `./scripts/admin watch`, through real channels."""

import sys

import grpc
import pytest

from common.errors import InputError
from protos import federated_pb2 as pb
from scripts import admin
from scripts.admin_follow import follow
from tests.service.harness import LiveServer, update


def watch(server, monkeypatch, tmp_path, *flags):
    """Return the exit status of the command."""
    token = tmp_path / "token"
    token.write_text(server.operator_token)
    where = ["--server", server.admin_address, "--token-file", str(token)]
    monkeypatch.setattr(sys, "argv", ["admin", "watch", *where, *flags])
    return admin.main()


def test_a_run_is_followed_to_a_server_that_was_started_again_elsewhere(tmp_path):
    servers = []

    def open_channel():
        if not servers:
            raise InputError("no server is running")
        return servers[-1].open_channel(servers[-1].admin_address, servers[-1].operator_token)

    with pytest.raises(InputError):
        next(follow(open_channel, 1))
    seen = follow(open_channel, 1)
    with LiveServer(tmp_path / "run", rounds=1) as first:
        servers.append(first)
        assert next(seen).run.state == pb.Run.STATE_WAITING
    lost = next(one for one in seen if one.problem)
    assert lost.admin is None
    assert lost.run.run_id == "run"
    servers.clear()
    assert next(seen).problem == "no server is running"
    with LiveServer(tmp_path / "run", rounds=1, resume=True) as second:
        servers.append(second)
        found = next(seen)
        assert not found.problem
        assert found.admin.ListClients(pb.ListClientsRequest(), timeout=10) is not None
        clients = [second.join(name) for name in "ab"]
        for client in clients:
            client.push(client.assignment(), update())
        *_, last = seen
    assert last.run.state == pb.Run.STATE_SUCCEEDED


def test_one_who_is_refused_does_not_try_again(tmp_path):
    with LiveServer(tmp_path / "run") as server:
        seen = follow(lambda: grpc.insecure_channel(server.admin_address), 1)
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
            next(seen)


def test_who_finds_no_server_at_first_is_told_at_once():
    seen = follow(lambda: grpc.insecure_channel("127.0.0.1:1"), 1)
    with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
        next(seen)


def test_watch_ends_with_0_after_success_and_with_1_and_the_reason_after_failure(
    tmp_path, monkeypatch, capsys
):
    with LiveServer(tmp_path / "good", rounds=1, min_clients=1) as server:
        client = server.join("a")
        client.push(client.assignment(), update())
        server.ended()
        assert watch(server, monkeypatch, tmp_path) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith("good: succeeded | ")
    with LiveServer(tmp_path / "bad", max_attempts=1) as server:
        for client in [server.join("a"), server.join("b")]:
            client.report(client.assignment(), failure=pb.TaskFailure(reason="NO"))
        server.ended()
        assert watch(server, monkeypatch, tmp_path, "--json") == 1
        output = capsys.readouterr()
        assert '"STATE_FAILED"' in output.out
        # After what the server, which is in this process, has to say.
        assert output.err.splitlines()[-1].startswith("error: round 1 was abandoned 1 times")
