"""A server that says what a test tells it to, and a real client of it."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.protobuf.duration_pb2 import Duration

from client.connection import Connection
from client.progress import StepProgress
from client.runner import ProcessContext, Runner
from common.tasks import load_task
from common.tensors import digest_bytes, encode, views
from common.transfer import pieces
from protos import federated_pb2 as pb
from protos import federated_pb2_grpc as pb_grpc

TASK = "tests.tasks:Tiny"
# So many calls of one kind no honest conversation of these tests has.
MOST_CALLS = 200


def model_of(task=TASK, name="linear"):
    """Return the bytes of a task's model."""
    return encode(load_task(task).models[name]().state_dict())


def digest_of(data):
    digest = digest_bytes(data)
    return pb.Digest(blake3=digest.blake3, size_bytes=digest.size_bytes)


class Server(pb_grpc.CoordinatorServicer):
    """Trains one round and ends; a context manager. What it says may be changed before."""

    def __init__(self, task=TASK, model="linear", data=None):
        self.calls = Counter()
        self.failures = []
        self.requests = []
        self.payloads = {}
        self.pushed = bytearray()
        self.chunk_sizes = []
        split = pb.DataSplit(partitioner="PARTITIONER_IID", num_partitions=2)
        self.joined = pb.JoinResponse(
            session_token="secret",
            run_id="run",
            heartbeat_interval=Duration(seconds=5),
            lease_duration=Duration(seconds=30),
            max_poll_duration=Duration(seconds=30),
            max_chunk_size_bytes=1 << 20,
            max_update_size_bytes=1 << 30,
            limits=pb.Limits(max_num_examples=1000, max_metrics=32, max_metric_name_length=64),
            task=pb.TaskSpec(task_name=task, model_name=model, split=split),
        )
        self.assignment = pb.TaskAssignment(
            task_token=b"work",
            round=1,
            model=self.holds(data or model_of(task, model)),
            time_remaining=Duration(seconds=600),
            train=pb.TrainWork(local_epochs=1, batch_size=8, learning_rate=0.1),
        )
        self.end = pb.RunEnd()
        self.outcome = pb.PushUpdateResponse(
            outcome="OUTCOME_ACCEPTED", upload=pb.Upload(complete=True)
        )
        self._server = grpc.server(ThreadPoolExecutor(8))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        pb_grpc.add_CoordinatorServicer_to_server(self, self._server)

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(0).wait()

    def holds(self, data, version=0):
        """Let a model of these bytes be pulled; return what names it."""
        reference = pb.ModelRef(version=version, digest=digest_of(data))
        self.payloads[version] = (reference, data)
        return reference

    def count(self, kind, context):
        self.calls[kind] += 1
        if self.calls[kind] > MOST_CALLS:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "asked too often")

    def Join(self, request, context):
        self.count("join", context)
        return self.joined

    def Heartbeat(self, request, context):
        self.count("heartbeat", context)
        return pb.HeartbeatResponse()

    def Leave(self, request, context):
        return pb.LeaveResponse()

    def PollTaskAssignment(self, request, context):
        self.count("poll", context)
        if self.calls["poll"] == 1:
            return pb.PollTaskAssignmentResponse(assignment=self.assignment)
        return pb.PollTaskAssignmentResponse(run_end=self.end)

    def PullModel(self, request, context):
        self.count("pull", context)
        model, data = self.payloads[request.model_version]
        if request.payload_name:
            model, data = self.payloads[request.payload_name]
        yield pb.PullModelResponse(header=model)
        for piece in pieces(memoryview(data), request.read_offset):
            chunk = pb.Chunk(offset=piece.offset, data=bytes(piece.data), finish_write=piece.last)
            yield pb.PullModelResponse(chunk=chunk)

    def PushUpdate(self, requests, context):
        self.count("push", context)
        for request in requests:
            if request.WhichOneof("payload") == "header":
                self.header = request.header
                self.pushed = bytearray()
            else:
                self.pushed += request.chunk.data
                self.chunk_sizes.append(len(request.chunk.data))
        return self.outcome

    def GetUpload(self, request, context):
        self.count("upload", context)
        return pb.GetUploadResponse()

    def ReportTaskResult(self, request, context):
        self.count("report", context)
        self.requests.append(request)
        return pb.ReportTaskResultResponse()


class Ticking(threading.Event):
    """A stop event for which time passes at once; it is set after so many seconds of waiting."""

    def __init__(self, most=60.0):
        super().__init__()
        self.seconds = []
        self._most = most

    def wait(self, timeout=None):
        self.seconds.append(timeout)
        if sum(self.seconds) > self._most:
            self.set()
        return self.is_set()


def runner_of(server, folder, willing=(TASK,), stop=None, max_wait=2.0):
    """Return a client that has not joined yet."""
    stop = stop or threading.Event()
    connection = Connection(server.address, None, max_wait, stop)
    process = ProcessContext(
        connection, list(willing), [0], folder, folder / "state", "cpu", stop, StepProgress()
    )
    return Runner(process, "client-0", 0)


def take_part(*arguments, **options):
    """Run a client in this thread until it ends; what ends it is raised."""
    runner = runner_of(*arguments, **options)
    try:
        runner.run()
    finally:
        runner.context.connection.close()
    return runner


def poison(data, **changes):
    """Return tensors' bytes with other tensors in place of some; None leaves one out."""
    tensors = views(memoryview(bytearray(data))) | changes
    return encode({name: value for name, value in tensors.items() if value is not None})
