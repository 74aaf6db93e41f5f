"""The operator's command: shows a running server's state, follows it, stops it, admits clients.

Speaks to the Admin service; --json prints its messages, for scripts.
"""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Annotated

import grpc
from cyclopts import App, Parameter
from cyclopts.validators import Number
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.live import Live
from rich.table import Table

from common.errors import InputError, RunFailed
from common.option_types import finite
from common.printable import printable
from protos import federated_pb2 as pb
from protos import federated_pb2_grpc as pb_grpc
from scripts.admin_channel import Where, connect, newest_server, server_of
from scripts.admin_follow import ENDED, Seen, follow
from scripts.admin_views import LiveView, clients_table, rounds_table, run_line
from scripts.cli import command_line, run_app

_CALL_SECONDS = 10.0
_KEEPALIVE_SECONDS = 10
_DAY_SECONDS = 86_400
_PAGE = 1000
# Of the live view: rounds that it may show, and how often it looks at the clients.
_LAST_ROUNDS = 50
_LOOK_SECONDS = 0.5

app = command_line(
    "admin", "Shows a running server's state, follows it, stops it, or admits clients to it."
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
        found = _rounds(pb_grpc.AdminStub(channel), last)
    _show(found, rounds_table(found), json)


@app.command
def clients(*, server: Server = Server(), json: Json = False) -> None:
    """List the clients that are there, and those that the round waits for."""
    with _connect(server) as channel:
        found = _clients(pb_grpc.AdminStub(channel))
    _show(found, clients_table(found), json)


@app.command
def watch(*, server: Server = Server(), json: Json = False) -> None:
    """Follow the run until it ends: on a terminal a live view, elsewhere a line at each change.

    Goes on when the server is started again. The exit status is 0 if the run succeeded.
    """
    if server.server is None:
        server = replace(server, run_dir=server.run_dir or newest_server(Path("runs")))
    console = Console()
    live = not json and sys.stdout.isatty() and not console.is_dumb_terminal
    seen = follow(lambda: _connect(server), 1 if live else _KEEPALIVE_SECONDS)
    run = _watch_live(seen, console) if live else _watch_lines(seen, json)
    if run.state == pb.Run.STATE_FAILED:
        raise RunFailed(run.failure_message)


def _watch_lines(seen: Iterable[Seen], as_json: bool) -> pb.Run:
    shown, problem, run = "", "", pb.Run()
    for run, _, problem_now in seen:
        if bool(problem_now) != bool(problem):
            lost = f"no connection: {printable(problem_now)}; trying again"
            said = lost if problem_now else "connected again"
            print(said, file=sys.stderr, flush=True)
        problem = problem_now
        visible = pb.Run()
        visible.CopyFrom(run)
        # They change when nothing else does.
        visible.ClearField("revision")
        visible.round.ClearField("time_remaining")
        line = _as_json(visible) if as_json else run_line(run)
        if line != shown:
            shown = line
            _show_run(run, as_json)
    return run


def _watch_live(seen: Iterator[Seen], console: Console) -> pb.Run:
    # What is wrong from the beginning is said without a live view.
    first = next(seen)
    view, due = LiveView(first.run, [], []), 0.0
    try:
        with Live(view, console=console, screen=True) as live:
            for run, admin, problem in chain([first], seen):
                # The reason comes last, as a narrow terminal cuts it.
                view = replace(view, run=run, problem=problem and f"trying again: {problem}")
                began = time.monotonic()
                if admin and (began >= due or run.state in ENDED):
                    # It may end meanwhile; what is seen of it next will tell.
                    with suppress(grpc.RpcError):
                        found, last = _clients(admin), _rounds(admin, _LAST_ROUNDS)
                        view = replace(view, clients=found, rounds=last)
                    # Thousands of clients cost the server less than a tenth of its time.
                    due = began + max(_LOOK_SECONDS, 10 * (time.monotonic() - began))
                live.update(view)
    finally:
        # Below what the terminal made of Ctrl-C; the prompt needs a line, too.
        console.print("", view, sep="", height=console.height - 1)
    return view.run


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


def _rounds(admin: pb_grpc.AdminStub, last: int) -> list[pb.Round]:
    found: list[pb.Round] = []
    request = pb.ListRoundsRequest(page_size=min(last, _PAGE))
    while len(found) < last:
        response = admin.ListRounds(request, timeout=_CALL_SECONDS)
        found.extend(response.rounds)
        request.page_token = response.next_page_token
        if not response.next_page_token:
            break
    return found[:last]


def _clients(admin: pb_grpc.AdminStub) -> list[pb.Client]:
    found: list[pb.Client] = []
    request = pb.ListClientsRequest(page_size=_PAGE)
    while True:
        response = admin.ListClients(request, timeout=_CALL_SECONDS)
        found.extend(response.clients)
        request.page_token = response.next_page_token
        if not response.next_page_token:
            return found


def _as_json(message: Message) -> str:
    plain = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.dumps(plain)


def _show_run(run: pb.Run, as_json: bool) -> None:
    print(_as_json(run) if as_json else run_line(run), flush=True)


def _show(found: Sequence[Message], table: Table, as_json: bool) -> None:
    if not as_json:
        Console().print(table)
        return
    for message in found:
        print(_as_json(message))


def main() -> int:
    """Return the exit status: 0 done, 1 the server can't be reached or refuses, 2 wrong input."""
    try:
        return run_app(app)
    except grpc.RpcError as error:
        print(f"error: {printable(_explain(error))}", file=sys.stderr)
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
