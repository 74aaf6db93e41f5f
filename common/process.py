"""How a command begins and ends: memory, its first signals, and its errors as exit statuses."""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable

from common.errors import InputError, RunFailed
from common.printable import printable

# Where the system sets no limit.
_MOST_DESCRIPTORS = 10_240
# From malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def begin_process() -> None:
    """Install the first signal handlers and memory settings, before gRPC is imported."""
    # What gRPC has to say of a port comes as an error with the flag's name.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    keep_chunks_allocated()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: os._exit(128 + received))


def descriptors() -> int:
    """Let this process open as many files and connections as it may; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else hard
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def keep_chunks_allocated() -> None:
    """Let glibc's malloc keep up to 16 MiB of freed memory, twice; elsewhere, do nothing.

    Left to itself, it gives each 1 MiB chunk back to the system and faults it in again: four
    fifths of the server's CPU time in sending a model. And it would do so for each thread apart.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 16 << 20)
        mallopt(_M_MMAP_THRESHOLD, 4 << 20)
        mallopt(_M_ARENA_MAX, 2)


def exit_status(run: Callable[[], int]) -> int:
    """Return what `run` returns; after InputError 2 and after RunFailed 1, each with its line.

    Also 1, without a word, where nobody reads on what is printed, as before `| head`.
    """
    try:
        status = _status(run)
        if sys.stdout is not None:
            # What waits in the buffer may be what can't be printed.
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    return status


def _status(run: Callable[[], int]) -> int:
    try:
        return run()
    except (InputError, RunFailed) as error:
        # It may hold what another machine said.
        sys.stderr.write(f"error: {printable(str(error))}\n")
        return 2 if isinstance(error, InputError) else 1
