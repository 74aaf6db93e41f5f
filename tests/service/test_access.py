"""Who may call what: each method by each kind of caller, with certificates and with tokens."""

import os
import threading
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.connection import Connection
from common.errors import InputError
from protos import federated_pb2 as pb
from protos import federated_pb2_grpc as pb_grpc
from scripts import make_certs
from scripts.admin_channel import Where, connect
from server.auth.callers import keep_secret
from tests import certs
from tests.service.harness import TASK, Client, LiveServer, refusal, update

# Of the Coordinator and of Admin; a request for each, given a session's token and work.
METHODS = {
    "Join": lambda who: pb.JoinRequest(
        client_id="client-0", instance_id="another", task_names=[TASK]
    ),
    "Heartbeat": lambda who: pb.HeartbeatRequest(session_token=who.token),
    "PollTaskAssignment": lambda who: pb.PollTaskAssignmentRequest(session_token=who.token),
    "PullModel": lambda who: pb.PullModelRequest(session_token=who.token, model_version=0),
    "PushUpdate": lambda who: pb.PushUpdateRequest(header=who.header(who.work, update())),
    "GetUpload": lambda who: pb.GetUploadRequest(
        session_token=who.token, task_token=who.work.task_token
    ),
    "ReportTaskResult": lambda who: pb.ReportTaskResultRequest(
        session_token=who.token, task_token=who.work.task_token, failure=pb.TaskFailure(reason="NO")
    ),
    "Leave": lambda who: pb.LeaveRequest(session_token=who.token),
    "GetRun": lambda _: pb.GetRunRequest(),
    "ListRounds": lambda _: pb.ListRoundsRequest(),
    "ListClients": lambda _: pb.ListClientsRequest(),
    "WatchRun": lambda _: pb.WatchRunRequest(),
    "StopRun": lambda _: pb.StopRunRequest(),
    "CreateJoinToken": lambda _: pb.CreateJoinTokenRequest(),
    "ListJoinTokens": lambda _: pb.ListJoinTokensRequest(),
    "RevokeJoinToken": lambda _: pb.RevokeJoinTokenRequest(token_id="none"),
}
ADMIN = {method.name for method in pb.DESCRIPTOR.services_by_name["Admin"].methods}
WITH_CERTIFICATES = [
    "no certificate",
    "plain text",
    "another CA's certificate",
    "an expired certificate",
    "a revoked certificate",
    "another client's certificate",
    "the operator's certificate",
    "the client's own certificate",
]
WITH_TOKENS = [
    "no token",
    "a wrong token",
    "an expired token",
    "a revoked token",
    "a used-up token",
    "another client's token",
    "the operator's token",
    "a join token",
]
REVOKED = ("UNAUTHENTICATED", "CERTIFICATE_REVOKED")
LARGE = "tests.tasks:Large"
TABLE = Path(__file__).parent / "access.md"


class SecureServer(LiveServer):
    """A server with TLS; what it is told to, it shows with the certificates in `folders`."""

    def __init__(self, folder, *task, **options):
        # Who calls is what counts here, and not which partition.
        super().__init__(folder, *task, partitioner="none", **options)

    def open_channel(self, address, token=""):
        certs_of = self.operator_certs if token else self.client_certs
        return connect(Where(address, token, certs_of))


def outcome(channel, name, request):
    """Return what a method answers, in a cell of the table."""
    stub = (pb_grpc.AdminStub if name in ADMIN else pb_grpc.CoordinatorStub)(channel)
    try:
        if name == "PushUpdate":
            stub.PushUpdate(iter([request]), timeout=10)
        elif name in ("PullModel", "WatchRun"):
            call = getattr(stub, name)(request, timeout=10)
            next(call)
            call.cancel()
        else:
            getattr(stub, name)(request, timeout=10)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:  # The handshake refused it.
            return "UNAVAILABLE (handshake)"
        return " ".join(refusal(error)[:2])
    return "OK"


def outcomes(kind, open_channel, own_session, join_request=None):
    """Return what each method answers a kind of caller, who knows a session of client-0."""
    found = {}
    for name, request in METHODS.items():
        if name == "StopRun" and "operator" in kind:
            found[name] = "OK"  # As test_admin.py has it; here the run must go on.
            continue
        own = own_session(f"{kind}, {name}")
        own.work = own.assignment()
        with open_channel(name in ADMIN) as channel:
            wanted = join_request if join_request and name == "Join" else request(own)
            found[name] = outcome(channel, name, wanted)
    return found


def rendered(title, found):
    """Return a table of methods by callers, in Markdown."""
    lines = [
        f"## {title}",
        "",
        "| | " + " | ".join(found) + " |",
        "| --- " * (len(found) + 1) + "|",
    ]
    for method in METHODS:
        cells = [answers[method] for answers in found.values()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def check_table(title, found):
    """Compare a table with the written one; UPDATE_TABLES=1 writes it."""
    parts = TABLE.read_text().split("\n## ")
    written = {part.splitlines()[0]: index for index, part in enumerate(parts)}
    new = rendered(title, found)
    if os.environ.get("UPDATE_TABLES"):
        parts[written.get(title, len(parts)) : written.get(title, len(parts)) + 1] = [new[3:]]
        TABLE.write_text("\n## ".join(parts))
        return
    assert "## " + parts[written[title]].rstrip() + "\n" == new


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CA with clients 0 and 1 (1 is revoked), an expired one, and a stranger of another CA."""
    place = certs.make(tmp_path_factory.mktemp("certs") / "own", clients=3)
    certs.make(place.parent / "other", clients=1)
    certs.expired_client(place, "old")
    make_certs.revoke("client-2", folder=place)
    return place


@pytest.fixture(scope="module")
def mutual(folder, tmp_path_factory):
    with mutual_server(folder, tmp_path_factory.mktemp("mutual")) as server:
        yield server


def mutual_options(folder):
    return {
        "tls_cert": folder / "server" / "cert.pem",
        "tls_key": folder / "server" / "key.pem",
        "tls_client_ca": folder / "server" / "ca.pem",
        "tls_crl": folder / "server" / "revoked.pem",
        "rounds": 100,
        "max_attempts": 1000,
        "min_clients": 1,
    }


def mutual_server(folder, place, **options):
    """Return a server that asks for certificates, called as client-0 and as the operator."""
    server = SecureServer(place / "run", **mutual_options(folder) | options)
    server.client_certs, server.operator_certs = folder / "clients/client-0", folder / "operator"
    return server


def caller(folder, kind):
    """Return the folder of a caller's certificates; None is plain text."""
    own = folder / "clients"
    if kind == "plain text":
        return None
    if kind in ("no certificate", "another CA's certificate"):
        # They know the CA, but are not known by it.
        place = folder / kind.replace(" ", "-")
        place.mkdir(exist_ok=True)
        (place / "ca.pem").write_bytes((folder / "server" / "ca.pem").read_bytes())
        for name in ("cert.pem", "key.pem") if kind != "no certificate" else ():
            theirs = folder.parent / "other" / "clients" / "client-0" / name
            (place / name).write_bytes(theirs.read_bytes())
        return place
    return {
        "an expired certificate": own / "old",
        "a revoked certificate": own / "client-2",
        "another client's certificate": own / "client-1",
        "the operator's certificate": folder / "operator",
        "the client's own certificate": own / "client-0",
    }[kind]


def channel_of(address, place):
    """Return a channel with these certificates, even those that `connect` would refuse."""
    if place is None or not (place / "cert.pem").exists():
        return connect(Where(address, "", place))
    read = [(place / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem")]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(*read))


def test_with_certificates_each_method_is_open_to_its_own_callers_only(mutual, folder):
    def own_session(instance):
        return mutual.join("client-0", instance=instance)

    own_session("first")
    before = mutual.admin.GetRun(pb.GetRunRequest(), timeout=10).run.model
    found = {}
    for kind in WITH_CERTIFICATES:
        shown = caller(folder, kind)

        def open_channel(admin, place=shown):
            return channel_of(mutual.admin_address if admin else mutual.address, place)

        found[kind] = outcomes(kind, open_channel, own_session)
    check_table("With client certificates (--tls-client-ca)", found)
    assert mutual.admin.GetRun(pb.GetRunRequest(), timeout=10).run.model == before


def test_the_table_holds_every_method():
    services = pb.DESCRIPTOR.services_by_name.values()
    assert METHODS.keys() == {method.name for s in services for method in s.methods}


def test_a_client_that_is_revoked_is_out_at_once_and_another_comes_in(tmp_path):
    folder = certs.make(tmp_path / "certs", clients=1)
    with mutual_server(folder, tmp_path) as server:
        client = server.join("client-0")
        work = client.assignment()
        client.push(work, update(), chunk_size=50, stop_after=1)
        make_certs.revoke("client-0", folder=folder)
        for call in (
            client.heartbeat,
            lambda: client.push(work, update(), write_offset=50),
            lambda: client.pull(work.model),
            lambda: server.join("client-0", instance="again"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert refusal(caught.value)[:2] == REVOKED
        make_certs.client("late", folder=folder)
        with connect(Where(server.address, "", folder / "clients" / "late")) as channel:
            request = pb.JoinRequest(client_id="late", instance_id="one", task_names=[TASK])
            assert pb_grpc.CoordinatorStub(channel).Join(request, timeout=10).session_token


def test_a_revoked_client_is_stopped_in_the_middle_of_its_upload(tmp_path):
    folder = certs.make(tmp_path / "certs", clients=1)
    with mutual_server(folder, tmp_path) as server:
        client = server.join("client-0")
        work, data = client.assignment(), update()

        def messages():
            yield pb.PushUpdateRequest(header=client.header(work, data))
            yield pb.PushUpdateRequest(chunk=pb.Chunk(offset=0, data=data[:50]))
            while client.uploaded(work).committed_size_bytes < 50:
                pass
            make_certs.revoke("client-0", folder=folder)
            yield pb.PushUpdateRequest(chunk=pb.Chunk(offset=50, data=data[50:], finish_write=True))

        with pytest.raises(grpc.RpcError) as caught:
            server.stub.PushUpdate(messages(), timeout=20)
        assert refusal(caught.value)[:2] == REVOKED
        assert server.admin.GetRun(pb.GetRunRequest(), timeout=10).run.round.accepted_count == 0


def test_the_servers_certificate_can_be_exchanged_while_it_runs(tmp_path):
    folder = certs.make(tmp_path / "certs", clients=1)
    other = certs.make(tmp_path / "other", clients=1)
    with mutual_server(folder, tmp_path) as server:
        session = server.join("client-0")
        for name in ("cert.pem", "ca.pem", "key.pem", "revoked.pem"):
            target = folder / "server" / name
            temporary = target.with_suffix(".new")
            temporary.write_bytes((other / "server" / name).read_bytes())
            temporary.replace(target)
        theirs = other / "clients" / "client-0"
        with connect(Where(server.address, "", theirs)) as channel:
            request = pb.JoinRequest(client_id="client-0", instance_id="two", task_names=[TASK])
            assert pb_grpc.CoordinatorStub(channel).Join(request, timeout=10).session_token
        # Connections of before go on.
        with pytest.raises(grpc.RpcError) as caught:
            session.heartbeat()
        assert refusal(caught.value)[1] == "SESSION_SUPERSEDED"


def test_a_server_of_another_ca_or_name_is_not_trusted_and_the_client_says_so(folder, tmp_path):
    def join(address, place):
        read = [(place / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem")]
        credentials = grpc.ssl_channel_credentials(*read)
        connection = Connection(address, credentials, 20.0, threading.Event())
        try:
            connection.join(pb.JoinRequest(client_id="client-0", instance_id="x"))
        finally:
            connection.close()

    with mutual_server(folder, tmp_path, bind="0.0.0.0:0") as server:
        port = server.address.rpartition(":")[2]
        own, stranger = (f / "clients" / "client-0" for f in (folder, folder.parent / "other"))
        with pytest.raises(InputError, match=r"--tls-ca: 127.0.0.1:.* is not trusted"):
            join(f"127.0.0.1:{port}", stranger)
        with pytest.raises(InputError, match=r"--tls-ca: 127.0.0.2:.* is not trusted"):
            join(f"127.0.0.2:{port}", own)
        with pytest.raises(InputError, match="--task: "):  # Trusted, and let in.
            join(f"127.0.0.1:{port}", own)


# ----------------------------------------------------------------------------- join tokens


@pytest.fixture(scope="module")
def tokened(folder, tmp_path_factory):
    options = mutual_options(folder)
    del options["tls_client_ca"], options["tls_crl"]
    server = SecureServer(tmp_path_factory.mktemp("tokens") / "run", **options)
    server.client_certs = server.operator_certs = caller(folder, "no certificate")
    with server:
        yield server


def create(server, **request):
    response = server.admin.CreateJoinToken(pb.CreateJoinTokenRequest(**request), timeout=10)
    return response.secret, response.join_token.token_id


def join(server, client_id, token, instance="one", task=TASK):
    request = pb.JoinRequest(
        client_id=client_id, instance_id=instance, task_names=[task], join_token=token
    )
    return server.stub.Join(request, timeout=10)


def token_of(server, kind):
    """Return a token, or what passes for one, with which `kind-client` comes."""
    if kind == "an expired token":
        secret, _ = create(server, lifetime=Duration(seconds=1))
        time.sleep(1.01)
        return secret
    secret, token_id = create(server)
    if kind == "a revoked token":
        server.admin.RevokeJoinToken(pb.RevokeJoinTokenRequest(token_id=token_id), timeout=10)
    if kind == "a used-up token":
        join(server, "first", secret)
    return {
        "no token": "",
        "a wrong token": secret[:-1] + "?",
        "the operator's token": server.operator_token,
    }.get(kind, secret)


def test_with_tokens_join_and_admin_are_open_to_their_own_callers_only(tokened):
    def guessed_session(_):
        outsider = Client(tokened, "caller", pb.JoinResponse(session_token="guess"))
        outsider.assignment = lambda: pb.TaskAssignment(task_token=b"guess")
        return outsider

    def own_session(instance):
        return Client(tokened, "caller", join(tokened, "caller", own, instance))

    own, _ = create(tokened)
    join(tokened, "caller", own)
    found = {}
    for kind in WITH_TOKENS:
        token = own if kind == "a join token" else token_of(tokened, kind)

        def open_channel(admin, token=token):
            if not admin:
                return nullcontext(tokened.channel)
            return connect(Where(tokened.admin_address, token, tokened.operator_certs))

        session = own_session if kind == "a join token" else guessed_session
        join_request = pb.JoinRequest(
            client_id="caller", instance_id="new", task_names=[TASK], join_token=token
        )
        found[kind] = outcomes(kind, open_channel, session, join_request)
    check_table("With join tokens (--tls-cert alone)", found)


def test_a_token_admits_so_many_clients_and_each_of_them_again(tokened):
    secret, token_id = create(tokened, max_clients=2)
    for client_id in ("x", "y", "x"):
        assert join(tokened, client_id, secret).session_token
    with pytest.raises(grpc.RpcError, match="as many as it may"):
        join(tokened, "z", secret)
    tokens = tokened.admin.ListJoinTokens(pb.ListJoinTokensRequest(), timeout=10).join_tokens
    assert next(t for t in tokens if t.token_id == token_id).client_ids == ["x", "y"]


def test_revoking_a_token_ends_the_sessions_of_its_clients(tokened):
    secret, token_id = create(tokened)
    session = join(tokened, "turned-out", secret).session_token
    beat = pb.HeartbeatRequest(session_token=session)
    tokened.stub.Heartbeat(beat, timeout=10)
    tokened.admin.RevokeJoinToken(pb.RevokeJoinTokenRequest(token_id=token_id), timeout=10)
    with pytest.raises(grpc.RpcError) as caught:
        tokened.stub.Heartbeat(beat, timeout=10)
    assert refusal(caught.value)[1] == "SESSION_UNKNOWN"


@pytest.fixture(scope="module")
def large(folder, tmp_path_factory):
    """A server of a model of 72 chunks that asks for join tokens."""
    options = mutual_options(folder)
    del options["tls_client_ca"], options["tls_crl"]
    server = SecureServer(tmp_path_factory.mktemp("large") / "run", LARGE, **options)
    server.client_certs = server.operator_certs = caller(folder, "no certificate")
    with server:
        yield server


def end_by_token(server, client_id, token_id, secret):
    server.admin.RevokeJoinToken(pb.RevokeJoinTokenRequest(token_id=token_id), timeout=10)


def end_by_newer_process(server, client_id, token_id, secret):
    join(server, client_id, secret, "two", LARGE)


ENDINGS = pytest.mark.parametrize(
    ("end", "reason"),
    [(end_by_token, "SESSION_UNKNOWN"), (end_by_newer_process, "SESSION_SUPERSEDED")],
)


@ENDINGS
def test_an_upload_ends_with_its_session(large, end, reason):
    secret, token_id = create(large)
    client = Client(large, reason, join(large, reason, secret, task=LARGE))
    work = client.assignment()
    data = bytes(3 << 20)

    def messages():
        yield pb.PushUpdateRequest(header=client.header(work, data))
        yield pb.PushUpdateRequest(chunk=pb.Chunk(offset=0, data=data[: 1 << 20]))
        while client.uploaded(work).committed_size_bytes < 1 << 20:
            pass
        end(large, reason, token_id, secret)
        yield pb.PushUpdateRequest(chunk=pb.Chunk(offset=1 << 20, data=data[: 1 << 20]))

    with pytest.raises(grpc.RpcError) as caught:
        large.stub.PushUpdate(messages(), timeout=20)
    assert refusal(caught.value)[1] == reason


@ENDINGS
def test_a_pull_ends_with_its_session(large, end, reason):
    secret, token_id = create(large)
    name = f"{reason}-pull"
    client = Client(large, name, join(large, name, secret, task=LARGE))
    request = pb.PullModelRequest(session_token=client.token, model_version=0)
    call = large.stub.PullModel(request, timeout=20)
    next(call)
    end(large, name, token_id, secret)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert refusal(caught.value)[1] == reason


def test_no_token_is_in_the_run_directory_but_the_operators_own_file(tokened):
    keep_secret(tokened.folder / "operator.token", tokened.operator_token)
    secret, _ = create(tokened)
    join(tokened, "somebody", secret)
    holders = Counter()
    for path in tokened.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            holders["join token"] += secret.partition(".")[2].encode() in data
            if tokened.operator_token.encode() in data:
                holders[path.name] += 1
                assert path.stat().st_mode & 0o777 == 0o600
    assert holders == {"join token": 0, "operator.token": 1}


@pytest.mark.parametrize(
    "request_",
    [
        pb.CreateJoinTokenRequest(max_clients=-1),
        pb.CreateJoinTokenRequest(max_clients=1001),
        pb.CreateJoinTokenRequest(lifetime=Duration(seconds=0)),
        pb.CreateJoinTokenRequest(lifetime=Duration(seconds=367 * 86400)),
    ],
)
def test_a_token_out_of_bounds_is_not_made(tokened, request_):
    with pytest.raises(grpc.RpcError) as caught:
        tokened.admin.CreateJoinToken(request_, timeout=10)
    assert refusal(caught.value)[1] == "FIELD_INVALID"


def test_a_server_without_tls_asks_for_no_token_and_says_so(tmp_path):
    with LiveServer(tmp_path / "run") as server:
        assert server.join().token
        with pytest.raises(grpc.RpcError) as caught:
            create(server)
        assert refusal(caught.value)[1] == "JOIN_TOKENS_UNUSED"
        with grpc.insecure_channel(server.admin_address) as channel:
            refused = "UNAUTHENTICATED OPERATOR_TOKEN_INVALID"
            assert outcome(channel, "GetRun", pb.GetRunRequest()) == refused
            # Whether it is up may be asked by anyone, as load balancers do.
            health = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service="federated.v1.Admin")
            assert health.Check(request, timeout=10).status == 1
