"""How a command begins and ends: its first signals, and its errors as exit statuses."""

import os
import signal
import sys
from collections.abc import Callable

from common.errors import InputError, RunFailed


def begin_process() -> None:
    """Set what holds until the process has something to end in order; before gRPC is imported."""
    # What gRPC has to say of a port comes as an error with the flag's name.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: os._exit(128 + received))


def exit_status(run: Callable[[], int]) -> int:
    """Return what `run` returns; after InputError 2 and after RunFailed 1, each with its line."""
    try:
        return run()
    except (InputError, RunFailed) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, InputError) else 1
