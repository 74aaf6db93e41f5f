"""Real server and client processes, on free ports, with their output kept."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from protos import federated_pb2 as pb
from protos import federated_pb2_grpc as pb_grpc
from scripts.admin_channel import connect, server_of
from server.storage.run_files import read_json
from tests.e2e.preloaded import Forked

ROOT = Path(__file__).parents[2]
TASK = "tests.tasks:Tiny"
PATIENCE = 90.0


class Process:
    """`python -m <arguments>`; its output goes to a file. `fresh`: with a start of its own."""

    def __init__(self, output: Path, *arguments, fresh=False, **environment):
        self.output = output
        self.is_script = str(arguments[0]).startswith("scripts.")
        words = list(map(str, arguments))
        variables = dict(os.environ) | environment
        if fresh or self.is_script:
            with output.open("ab") as file:
                self.popen = subprocess.Popen(
                    [sys.executable, "-m", *words],
                    stdout=file,
                    stderr=file,
                    cwd=ROOT,
                    env=variables,
                    start_new_session=True,
                )
        else:
            self.popen = Forked(words, output, ROOT, variables)

    def wait(self, timeout=PATIENCE):
        """Return the exit status."""
        return self.popen.wait(timeout)

    def signal(self, number):
        self.popen.send_signal(number)

    def end(self):
        if self.popen.poll() is None:
            # A script has processes of its own to end; a server or client has not.
            (self.popen.terminate if self.is_script else self.popen.kill)()
        self.popen.wait()

    @property
    def text(self):
        return self.output.read_text()

    @property
    def errors(self):
        return [line for line in self.text.splitlines() if line.startswith("error: ")]

    def events(self, name):
        """Return the log's JSON lines with this event."""
        whole = self.text.split("\n")[:-1]
        lines = [line for line in whole if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event["event"] == name]


class Federation:
    """Starts processes in a test's folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.run_dir = folder / "run"
        self.processes = []
        self.address = self.admin_address = ""
        self.operator_certs = None

    def start(self, *arguments, **environment):
        output = self.folder / f"{len(self.processes)}-{arguments[0]}.log"
        process = Process(output, *arguments, **environment)
        self.processes.append(process)
        return process

    def server(self, *flags, task=TASK, wait=True, bind="127.0.0.1:0", **environment):
        """Start a server; return once it listens."""
        process = self.start(
            *("server", "--bind", bind, "--run-dir", self.run_dir, "--task", task),
            *flags,
            **environment,
        )
        if wait:
            ready = until(lambda: self._ready(process), "the server to listen")
            self.address, self.admin_address = ready["address"], ready["admin_address"]
        return process

    def client(self, partition, *flags, task=TASK, **environment):
        """Start a client of the server."""
        return self.start(
            *("client", "--server", self.address, "--partition", partition, "--task", task),
            *flags,
            **environment,
        )

    def _ready(self, process):
        assert process.popen.poll() is None, process.text
        ready = read_json(self.run_dir / "server.json")
        return ready if ready.get("pid") == process.popen.pid else None

    @contextmanager
    def admin(self):
        with connect(server_of(self.run_dir, self.operator_certs)) as channel:
            yield pb_grpc.AdminStub(channel)

    def wait_for(self, reached):
        """Watch the run until `reached(run)` holds."""
        with self.admin() as admin:
            for response in admin.WatchRun(pb.WatchRunRequest(), timeout=PATIENCE):
                if reached(response.run):
                    return response.run
        raise AssertionError("the run ended before that")

    @property
    def rows(self):
        return json_lines(self.run_dir / "metrics.jsonl")

    @property
    def model(self):
        return (self.run_dir / "models" / "global.safetensors").read_bytes()


def json_lines(path):
    """Return the objects in a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def until(probe, what):
    """Return what `probe` returns once it is true; fail after a while."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = probe()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}")


def interrupt(process, number=signal.SIGTERM):
    """Send a signal; return the exit status and the seconds until the end."""
    began = time.monotonic()
    process.signal(number)
    status = process.wait(10)
    return status, time.monotonic() - began
