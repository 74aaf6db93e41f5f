"""`python -m <module>` in processes that are forked from one which has imported torch already.

Real processes with a few seconds less of start each. gRPC is not among the imports, so nothing of
it is forked. Linux and macOS, as the project.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

# Read once, when torch is imported: processes that share a machine need one thread each.
os.environ["OMP_NUM_THREADS"] = "1"

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch", "safetensors.torch", "sklearn.datasets", "cyclopts", "rich", "structlog"]
)


class Forked:
    """Like `subprocess.Popen`, as far as the harness needs it."""

    def __init__(self, arguments: list[str], output: Path, cwd: Path, environment: dict[str, str]):
        output.touch()
        self._process = _CONTEXT.Process(
            target=_run, args=(arguments, output, cwd, environment), daemon=True
        )
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self._process.exitcode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _run(arguments: list[str], output: Path, cwd: Path, environment: dict[str, str]) -> None:
    os.setsid()
    os.chdir(cwd)
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
