"""The operator's command: shows a running server's state, follows it, or stops it.

Speaks to the Admin service; --json prints its messages, for scripts.
"""

import json
import sys
from collections.abc import Iterable
from typing import Annotated

import grpc
from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from protos import federated_pb2 as pb
from protos import federated_pb2_grpc as pb_grpc

_CALL_SECONDS = 10.0
_KEEPALIVE_SECONDS = 10
_METRICS = {
    "accuracy": "global_accuracy",
    "loss": "global_loss",
    "clients' accuracy": "client_accuracy",
    "seconds": "duration_seconds",
}

app = App(
    name="./scripts/admin",
    help="Shows a running server's state, follows it, or stops it.",
    version_flags=(),
    help_format="plaintext",
)

Server = Annotated[str, Parameter(help="The server's admin address, HOST:PORT.")]
Json = Annotated[bool, Parameter(help="Print JSON, one object a line.", negative=())]
Last = Annotated[int, Parameter(help="How many.", validator=Number(gte=1))]
_ADDRESS = "127.0.0.1:7071"


@app.command
def status(*, server: Server = _ADDRESS, json: Json = False) -> None:
    """Show the run as it is now."""
    with grpc.insecure_channel(server) as channel:
        run = pb_grpc.AdminStub(channel).GetRun(pb.GetRunRequest(), timeout=_CALL_SECONDS).run
    _show_run(run, json)


@app.command
def rounds(*, server: Server = _ADDRESS, json: Json = False, last: Last = 20) -> None:
    """List the rounds that have ended, newest first."""
    with grpc.insecure_channel(server) as channel:
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
def watch(*, server: Server = _ADDRESS, json: Json = False) -> None:
    """Follow the run until it ends: a line at each change."""
    request = pb.WatchRunRequest(keepalive_interval=Duration(seconds=_KEEPALIVE_SECONDS))
    with grpc.insecure_channel(server) as channel:
        for response in pb_grpc.AdminStub(channel).WatchRun(request):
            _show_run(response.run, json)


@app.command
def stop(*, server: Server = _ADDRESS, json: Json = False) -> None:
    """End the run after its current round."""
    with grpc.insecure_channel(server) as channel:
        run = pb_grpc.AdminStub(channel).StopRun(pb.StopRunRequest(), timeout=_CALL_SECONDS).run
    _show_run(run, json)


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
        app(exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except grpc.RpcError as error:
        print(
            f"error: --server: {error.code().name}: {error.details()}; is a server running, "
            "and is this its admin address?",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
