"""A server on a real port in a thread of the test, and a client that speaks raw messages."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from common.tasks import load_task
from common.tensors import digest_bytes, encode
from common.transfer import pieces
from protos import federated_pb2 as pb
from protos import federated_pb2_grpc as pb_grpc
from scripts.admin_channel import Where, connect
from server import app, configuration
from server.auth.callers import open_doors, operator_token
from server.options import ServerOptions
from server.rpc.listeners import listen, start
from server.storage.checkpoints import RunDirectory

TASK = "tests.tasks:Tiny"
OUTCOME = pb.PushUpdateResponse.Outcome


class LiveServer:
    """Serves one run in `folder`; a context manager. `options` are flat names of the server's."""

    def __init__(self, folder: Path, task: str = TASK, **options):
        self.folder = folder
        self.options = options_of(folder, task, options)
        self._ready = threading.Event()
        self._stop = None
        self._loop = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.failure = None
        self._partitions = {}

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(60)
        if self.failure:
            self._thread.join()
            raise self.failure
        self.channel = self.open_channel(self.address)
        self.admin_channel = self.open_channel(self.admin_address, self.operator_token)
        self.stub = pb_grpc.CoordinatorStub(self.channel)
        self.admin = pb_grpc.AdminStub(self.admin_channel)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()
        self.channel.close()
        self.admin_channel.close()

    def open_channel(self, address, token=""):
        """Return a channel to the server; tests with certificates have another one."""
        return connect(Where(address, token))

    async def _serve(self):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        directory = RunDirectory(self.folder)
        try:
            task = load_task(self.options.run.task)
            options = configuration.resolve(self.options, task)
            token = operator_token(self.folder)
            access = open_doors(options.security, token)
            ports = listen(options.process, access, options.security)
            self.address, self.admin_address = ports.address, ports.admin_address
            self.metrics_address = ports.metrics and ports.metrics.address
            directory.lock()
            run_id = app.open_run(options, directory)
            self.coordinator = app.prepare(options, task, directory, run_id, None)
            await start(ports, options, self.coordinator)
            self.operator_token = token
        except Exception as error:  # noqa: BLE001 - handed to the test
            self.failure = error
            directory.unlock()
            self._ready.set()
            return
        self._ready.set()
        self._run = run = asyncio.create_task(self.coordinator.run())
        await self._stop.wait()
        self.coordinator.shut_down()
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await ports.stop(0.2)
        self.coordinator.spool.close()
        directory.unlock()

    def ended(self):
        """Wait for the run's end; raise what ended it, if something did."""

        async def wait():
            await asyncio.wait([self._run], timeout=30)
            return self._run.result()

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result(40)

    def join(self, name="client-0", partition=None, instance="one", task=TASK):
        """Join as a client; each name has a partition of its own if none is given."""
        if partition is None:
            partition = self._partitions.setdefault(name, len(self._partitions))
        request = pb.JoinRequest(
            client_id=name, instance_id=instance, task_names=[task], partition=partition
        )
        return Client(self, name, self.stub.Join(request, timeout=10))

    def wait_for(self, reached):
        """Watch the run until `reached(run)` holds; return the run."""
        call = self.admin.WatchRun(pb.WatchRunRequest(), timeout=30)
        for response in call:
            if reached(response.run):
                call.cancel()
                return response.run
        raise AssertionError("the run ended before that")


class Client:
    """One session, driven by the test."""

    def __init__(self, server, name, joined):
        self.server = server
        self.name = name
        self.joined = joined
        self.token = joined.session_token

    def poll(self, timeout=10):
        request = pb.PollTaskAssignmentRequest(session_token=self.token)
        return self.server.stub.PollTaskAssignment(request, timeout=timeout)

    def assignment(self):
        response = self.poll()
        assert response.HasField("assignment")
        return response.assignment

    def pull(self, model, offset=0):
        request = pb.PullModelRequest(
            session_token=self.token, model_version=model.version, read_offset=offset
        )
        responses = list(self.server.stub.PullModel(request, timeout=10))
        return responses[0].header, b"".join(r.chunk.data for r in responses[1:])

    def header(self, assignment, data, **changes):
        """Return an upload's header, with `changes` in place of what is right."""
        digest = digest_bytes(data)
        fields = {
            "session_token": self.token,
            "task_token": assignment.task_token,
            "base_model": assignment.model,
            "digest": pb.Digest(blake3=digest.blake3, size_bytes=digest.size_bytes),
            "num_examples": 10,
            "metrics": {"loss": 1.0},
        }
        return pb.PushUpdateHeader(**fields | changes)

    def push(self, assignment, data, chunk_size=1 << 20, stop_after=None, **header):
        """Upload `data`; `stop_after` breaks the stream after so many chunks."""
        fields = self.header(assignment, data, **header)
        messages = [pb.PushUpdateRequest(header=fields)]
        for piece in pieces(memoryview(data), fields.write_offset, chunk_size):
            chunk = pb.Chunk(offset=piece.offset, data=bytes(piece.data), finish_write=piece.last)
            messages.append(pb.PushUpdateRequest(chunk=chunk))
        if stop_after is not None:
            del messages[1 + stop_after :]
        return self.server.stub.PushUpdate(iter(messages), timeout=20)

    def report(self, assignment, **result):
        request = pb.ReportTaskResultRequest(
            session_token=self.token, task_token=assignment.task_token, **result
        )
        return self.server.stub.ReportTaskResult(request, timeout=10)

    def uploaded(self, assignment):
        request = pb.GetUploadRequest(session_token=self.token, task_token=assignment.task_token)
        return self.server.stub.GetUpload(request, timeout=10).upload

    def heartbeat(self, task_token=b""):
        request = pb.HeartbeatRequest(session_token=self.token, task_token=task_token)
        return self.server.stub.Heartbeat(request, timeout=10)


def update(value=1.0, **changes):
    """Return an update of Tiny's schema, filled with `value`; None as a change leaves one out."""
    tensors = {"weight": torch.full((3, 4), value), "bias": torch.full((3,), value)} | changes
    return encode({name: tensor for name, tensor in tensors.items() if tensor is not None})


def refusal(error):
    """Return the (code name, reason, domain) of a refused call."""
    info = error_details_pb2.ErrorInfo()
    rpc_status.from_call(error).details[0].Unpack(info)
    return error.code().name, info.reason, info.domain


def options_of(folder, task, given):
    """Return a server's options, from flat names."""
    default = {
        "task": task,
        "run_dir": folder,
        "bind": "127.0.0.1:0",
        "rounds": 2,
        "evaluate_every": 0,
        "client_evaluate_every": 0,
        "partitioner": "iid",
    }
    options = ServerOptions()
    for name, value in (default | given).items():
        group = next(g for g in vars(options) if hasattr(getattr(options, g), name))
        changed = replace(getattr(options, group), **{name: value})
        options = replace(options, **{group: changed})
    return options
