"""The operator's command: shows a running server's state, follows it, stops it, admits clients.

Speaks to the Admin service; --json prints its messages, for scripts.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import grpc
from cyclopts import App, Parameter
from cyclopts.validators import Number
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from common.config import finite
from common.errors import InputError
from protos import federated_pb2 as pb
from protos import federated_pb2_grpc as pb_grpc
from scripts.commands import run_app
from scripts.operators import Where, connect, newest_server, server_of

_CALL_SECONDS = 10.0
_KEEPALIVE_SECONDS = 10
_DAY_SECONDS = 86_400
_METRICS = {
    "accuracy": "global_accuracy",
    "loss": "global_loss",
    "clients' accuracy": "client_accuracy",
    "seconds": "duration_seconds",
}

app = App(
    name="./scripts/admin",
    help="Shows a running server's state, follows it, stops it, or admits clients to it.",
    version_flags=(),
    help_format="plaintext",
)
tokens = App(name="token", help="Join tokens, for clients without a certificate.")
app.command(tokens)

Json = Annotated[bool, Parameter(help="Print JSON, one object a line.", negative=())]
Admitted = Annotated[
    int, Parameter(help="Clients that it admits.", validator=Number(gte=1, lte=1000))
]
Days = Annotated[
    float, Parameter(help="How long it admits new ones.", validator=(finite, Number(gt=0, lte=366)))
]
Last = Annotated[int, Parameter(help="How many.", validator=Number(gte=1))]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Server:
    """Which server, and what is shown to it."""

    run_dir: Path | None = None
    "The server's run directory on this machine, which holds its address and the operator's token; \
the newest in runs/ if not given."
    server: str | None = None
    "On another machine: the server's admin address, HOST:PORT."
    token_file: Path | None = None
    "With --server: a copy of operator.token of the run directory."
    certs: Path | None = None
    "For a server with TLS: a folder with ca.pem and, where it asks for certificates, the \
operator's cert.pem and key.pem."


def _connect(chosen: Server) -> grpc.Channel:
    if chosen.server is None:
        folder = chosen.run_dir or newest_server(Path("runs"))
        return connect(server_of(folder, chosen.certs))
    if not chosen.server.rpartition(":")[2].isdecimal():
        raise InputError(f"--server: {chosen.server!r} is not HOST:PORT, e.g. 127.0.0.1:7071")
    token = ""
    if chosen.token_file is not None:
        try:
            token = chosen.token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            message = f"--token-file: can't read a token from {chosen.token_file}"
            raise InputError(message) from error
    return connect(Where(chosen.server, token, chosen.certs))


@app.command
def status(*, server: Server = Server(), json: Json = False) -> None:
    """Show the run as it is now."""
    with _connect(server) as channel:
        run = pb_grpc.AdminStub(channel).GetRun(pb.GetRunRequest(), timeout=_CALL_SECONDS).run
    _show_run(run, json)


@app.command
def rounds(*, server: Server = Server(), json: Json = False, last: Last = 20) -> None:
    """List the rounds that have ended, newest first."""
    with _connect(server) as channel:
        stub = pb_grpc.AdminStub(channel)
        found: list[pb.Round] = []
        request = pb.ListRoundsRequest(page_size=min(last, 1000))
        while len(found) < last:
            response = stub.ListRounds(request, timeout=_CALL_SECONDS)
            found.extend(response.rounds)
            request.page_token = response.next_page_token
            if not response.next_page_token:
                break
    _show_rounds(found[:last], json)


@app.command
def watch(*, server: Server = Server(), json: Json = False) -> None:
    """Follow the run until it ends: a line at each change."""
    request = pb.WatchRunRequest(keepalive_interval=Duration(seconds=_KEEPALIVE_SECONDS))
    with _connect(server) as channel:
        for response in pb_grpc.AdminStub(channel).WatchRun(request):
            _show_run(response.run, json)


@app.command
def stop(*, server: Server = Server(), json: Json = False) -> None:
    """End the run after its current round."""
    with _connect(server) as channel:
        run = pb_grpc.AdminStub(channel).StopRun(pb.StopRunRequest(), timeout=_CALL_SECONDS).run
    _show_run(run, json)


@tokens.command
def create(
    *,
    server: Server = Server(),
    clients: Admitted = 1,
    days: Days = 1.0,
    json: Json = False,
) -> None:
    """Print a new join token: what a client's --join-token-file holds. It is told only now."""
    request = pb.CreateJoinTokenRequest(max_clients=clients)
    request.lifetime.FromMilliseconds(round(days * _DAY_SECONDS * 1000))
    with _connect(server) as channel:
        response = pb_grpc.AdminStub(channel).CreateJoinToken(request, timeout=_CALL_SECONDS)
    print(_as_json(response) if json else response.secret)


@tokens.command(name="list")
def list_tokens(*, server: Server = Server(), json: Json = False) -> None:
    """List the join tokens, without their secrets."""
    with _connect(server) as channel:
        stub = pb_grpc.AdminStub(channel)
        found = stub.ListJoinTokens(pb.ListJoinTokensRequest(), timeout=_CALL_SECONDS).join_tokens
    if json:
        for token in found:
            print(_as_json(token))
        return
    table = Table("token", "admitted", "until", "clients")
    for token in found:
        until = "revoked" if token.revoked else f"{token.expire_time.ToDatetime():%Y-%m-%d %H:%M}"
        admitted = f"{len(token.client_ids)} of {token.max_clients}"
        table.add_row(token.token_id, admitted, until, ", ".join(token.client_ids))
    Console().print(table)


@tokens.command
def revoke(token_id: str, *, server: Server = Server()) -> None:
    """Revoke a join token, by the part before its dot; its clients are turned out."""
    with _connect(server) as channel:
        request = pb.RevokeJoinTokenRequest(token_id=token_id)
        token = pb_grpc.AdminStub(channel).RevokeJoinToken(request, timeout=_CALL_SECONDS)
    print(f"{token_id}: revoked; clients: {', '.join(token.join_token.client_ids) or 'none'}")


def _as_json(message: Message) -> str:
    plain = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.dumps(plain)


def _show_run(run: pb.Run, as_json: bool) -> None:
    if as_json:
        print(_as_json(run), flush=True)
        return
    state = pb.Run.State.Name(run.state).removeprefix("STATE_").lower()
    phase = pb.Round.Phase.Name(run.round.phase).removeprefix("PHASE_").lower()
    attempt = f", attempt {run.round.attempt}" if run.round.attempt > 1 else ""
    parts = [
        f"{run.run_id}: {state}",
        f"round {run.round.number} of {run.target_round_count} {phase}{attempt}",
        f"{run.round.accepted_count} of {run.round.report_goal} updates",
        f"{run.live_client_count} clients",
        f"model {run.model.version} {run.model.digest.blake3[:12]}",
    ]
    if run.failure_message:
        parts.append(run.failure_message)
    print(" | ".join(parts), flush=True)


def _show_rounds(found: Iterable[pb.Round], as_json: bool) -> None:
    if as_json:
        for item in found:
            print(_as_json(item))
        return
    table = Table("round", "ended", "updates", *_METRICS)
    for item in found:
        phase = pb.Round.Phase.Name(item.phase).removeprefix("PHASE_").lower()
        updates = f"{item.accepted_count} of {item.cohort_size}"
        numbers = item.metrics
        values = (f"{numbers[m]:.4f}" if m in numbers else "-" for m in _METRICS.values())
        table.add_row(str(item.number), phase, updates, *values)
    Console().print(table)


def main() -> int:
    """Return the exit status: 0 done, 1 the server can't be reached or refuses, 2 wrong input."""
    try:
        return run_app(app)
    except grpc.RpcError as error:
        print(f"error: {_explain(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _explain(error: grpc.RpcError) -> str:
    details = f"{error.code().name}: {error.details()}"
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return f"{details}; is this the port for clients? The admin port is the one after it"
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return details
    return f"{details}; is a server there, and does it want TLS or another certificate (--certs)?"


if __name__ == "__main__":
    sys.exit(main())
