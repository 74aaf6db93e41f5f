"""Follows a run through the Admin service until it ends, over broken connections and restarts.

Knows nothing about what is shown of it.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import grpc
from google.protobuf.duration_pb2 import Duration

from common.errors import InputError, RunFailed
from protos import federated_pb2 as pb
from protos import federated_pb2_grpc as pb_grpc
from scripts.admin_channel import reason

_FIRST_DELAY_SECONDS = 0.2
_LONGEST_DELAY_SECONDS = 5.0
_MAX_WAIT_SECONDS = 600.0
# To try again would not help.
_REFUSALS = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INVALID_ARGUMENT,
}
ENDED = {pb.Run.STATE_SUCCEEDED, pb.Run.STATE_FAILED}


class Seen(NamedTuple):
    """The run as it was seen last, and how to ask for more; or why it can't be seen now."""

    run: pb.Run
    admin: pb_grpc.AdminStub | None
    problem: str = ""


def follow(open_channel: Callable[[], grpc.Channel], keepalive_seconds: int) -> Iterator[Seen]:
    """Yield the run at each change, and after so many seconds without one, until it ends.

    Args:
        open_channel: called for each new connection; the server may have moved.
        keepalive_seconds: also how long a silent server is waited for, about.

    Raises:
        grpc.RpcError: the first connection fails, or a call is refused.
        InputError: `open_channel` finds no server at first.
        RunFailed: no server came back.
    """
    request = pb.WatchRunRequest(keepalive_interval=Duration(seconds=keepalive_seconds))
    run: pb.Run | None = None
    delay, reached = _FIRST_DELAY_SECONDS, time.monotonic()
    while True:
        try:
            with open_channel() as channel:
                admin = pb_grpc.AdminStub(channel)
                for response in admin.WatchRun(request):
                    run = response.run
                    yield Seen(run, admin)
                    if run.state in ENDED:
                        return
                    delay, reached = _FIRST_DELAY_SECONDS, time.monotonic()
            problem = "the server is shutting down"
        except grpc.RpcError as error:
            if run is None or error.code() in _REFUSALS:
                raise
            problem = reason(error)
        except InputError as error:
            if run is None:
                raise
            problem = str(error)
        if run is None or time.monotonic() - reached > _MAX_WAIT_SECONDS:
            raise RunFailed(f"no server for {_MAX_WAIT_SECONDS:g} s ({problem})")
        yield Seen(run, None, problem)
        time.sleep(delay)
        delay = min(2 * delay, _LONGEST_DELAY_SECONDS)
