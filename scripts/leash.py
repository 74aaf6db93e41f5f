"""Runs a module as a command that ends when the process that started it does, however that ended.

    python -m scripts.leash server --rounds 3

Its standard input is a pipe of which the starting process holds the other end.
"""

import os
import runpy
import signal
import sys
import threading


def main() -> None:
    """Run the module that the first argument names, with the others."""
    threading.Thread(target=_end_with_starter, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_starter() -> None:
    # Not by sys.stdin, whose lock a thread must not hold when the process ends.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
