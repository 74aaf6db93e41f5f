"""A server that lies ends its client with one line; no traceback, no busy loop, no foreign code."""

import math
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import grpc
import pytest
import torch
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from client.connection import Stopped
from client.promises import BrokenPromise, LimitExceeded
from common.errors import InputError, RunFailed
from protos import federated_pb2 as pb
from tests.service.lying import (
    MOST_CALLS,
    Server,
    Ticking,
    digest_of,
    model_of,
    poison,
    runner_of,
    take_part,
)
from tests.tasks import Tiny

STEPS = "scripts.resilience.tasks:Steps"


@pytest.fixture
def server():
    with Server() as made:
        yield made


def test_an_honest_one_of_the_same_kind_trains_a_round(server, tmp_path):
    take_part(server, tmp_path)
    assert server.header.num_examples == 100
    assert server.calls == {"join": 1, "poll": 2, "pull": 1, "push": 1}


# ------------------------------------------------------------- what Join says


def setting(path, value):
    """Return a lie: the field of that path has this value."""

    def lie(message):
        *parents, last = path.split(".")
        for parent in parents:
            message = getattr(message, parent)
        if isinstance(value, Duration):
            getattr(message, last).CopyFrom(value)
        else:
            setattr(message, last, value)

    return lie


def split(**values):
    def lie(joined):
        for name, value in values.items():
            setattr(joined.task.split, name, value)

    return lie


JOINS = {
    "no partitions": (split(num_partitions=0), "num_partitions"),
    "minus one partition": (split(num_partitions=-1), "num_partitions"),
    "two thousand million partitions": (
        split(partitioner="PARTITIONER_NONE", num_partitions=2**31 - 1),
        "num_partitions",
    ),
    "a seed below zero": (split(seed=-(2**63)), "seed"),
    "an alpha of NaN": (split(partitioner="PARTITIONER_DIRICHLET", alpha=math.nan), "alpha"),
    "an alpha of 0": (split(partitioner="PARTITIONER_QUANTITY", alpha=0.0), "alpha"),
    "an infinite alpha": (split(partitioner="PARTITIONER_DIRICHLET", alpha=math.inf), "alpha"),
    "no shards": (split(partitioner="PARTITIONER_SHARDS"), "shards_per_client"),
    "minus one shard": (
        split(partitioner="PARTITIONER_SHARDS", shards_per_client=-1),
        "shards_per_client",
    ),
    "all held out": (split(validation_fraction=1.0), "validation_fraction"),
    "NaN held out": (split(validation_fraction=math.nan), "validation_fraction"),
    "less than nothing held out": (split(validation_fraction=-0.5), "validation_fraction"),
    "no session token": (setting("session_token", ""), "session_token"),
    "a session token of 3 MB": (setting("session_token", "x" * 3_000_000), "session_token"),
    "no run id": (setting("run_id", ""), "run_id"),
    "a run id of 3 MB": (setting("run_id", "x" * 3_000_000), "run_id"),
    "a heartbeat every 0 s": (setting("heartbeat_interval", Duration()), "heartbeat_interval"),
    "a heartbeat every -1 s": (
        setting("heartbeat_interval", Duration(seconds=-1)),
        "heartbeat_interval",
    ),
    "a lease of 0 s": (setting("lease_duration", Duration()), "lease_duration"),
    "polls of 0 s": (setting("max_poll_duration", Duration()), "max_poll_duration"),
    "polls of -5 s": (setting("max_poll_duration", Duration(seconds=-5)), "max_poll_duration"),
    "chunks of 0 bytes": (setting("max_chunk_size_bytes", 0), "max_chunk_size_bytes"),
    "chunks of -1 byte": (setting("max_chunk_size_bytes", -1), "max_chunk_size_bytes"),
    "updates of 0 bytes": (setting("max_update_size_bytes", 0), "max_update_size_bytes"),
    "a norm of NaN": (setting("limits.max_update_norm", math.nan), "max_update_norm"),
    "minus one example": (setting("limits.max_num_examples", -1), "max_num_examples"),
    "minus one metric": (setting("limits.max_metrics", -1), "max_metrics"),
}


@pytest.mark.parametrize("lie", JOINS)
def test_what_join_announces_is_within_its_bounds(server, tmp_path, lie, capfd):
    tell, field = JOINS[lie]
    tell(server.joined)
    with pytest.raises(BrokenPromise, match=rf"^the server breaks its contract: {field}"):
        take_part(server, tmp_path)
    assert "Traceback" not in "".join(capfd.readouterr())
    assert server.calls["poll"] == 0


@pytest.mark.parametrize("number", [0, 99])
def test_a_partitioner_that_nobody_knows_is_wrong_input(server, tmp_path, number):
    server.joined.task.split.partitioner = number
    with pytest.raises(InputError, match=r"divides the data by .*, which this client can't"):
        take_part(server, tmp_path)


@pytest.mark.parametrize("seconds", [1e9, 1e11])
def test_a_very_long_poll_is_made_in_parts(server, tmp_path, seconds):
    server.joined.max_poll_duration.seconds = int(seconds)
    take_part(server, tmp_path)
    assert server.calls["push"] == 1


# --------------------------------------------------------------- the announced task

FOREIGN = """
from pathlib import Path
from tests.tasks import Tiny
Path("imported").touch()
"""


@pytest.mark.parametrize("name", ["foreign:Tiny", "digits", "x\x1b[2J:y"])
def test_another_task_than_the_clients_own_is_refused_before_it_is_imported(
    server, tmp_path, monkeypatch, name
):
    (tmp_path / "foreign.py").write_text(FOREIGN)
    monkeypatch.chdir(tmp_path)
    server.joined.task.task_name = name
    with pytest.raises(InputError, match=r"^--task: the server trains .* not started for") as told:
        take_part(server, tmp_path)
    assert not (tmp_path / "imported").exists()
    assert str(told.value).isprintable()
    assert server.calls["poll"] == 0


@pytest.mark.parametrize("name", ["foreign:Tiny", "unheard-of", "x\x1b[2J:y"])
def test_an_own_algorithm_is_refused_before_it_is_imported_or_its_model_pulled(
    server, tmp_path, monkeypatch, name
):
    (tmp_path / "foreign.py").write_text(FOREIGN)
    monkeypatch.chdir(tmp_path)
    server.assignment.train.algorithm.name = name
    with pytest.raises(InputError, match=r"^--strategy: the server runs .* not started") as told:
        take_part(server, tmp_path)
    assert not (tmp_path / "imported").exists()
    assert str(told.value).isprintable()
    assert server.calls["pull"] == 0


# ---------------------------------------------------------------- assignments


def scaffold(assignment, name="scaffold"):
    """Let an assignment be of an algorithm, and return what it says of it."""
    assignment.train.algorithm.name = name
    return assignment.train.algorithm


ASSIGNMENTS = {
    "no epochs": (setting("train.local_epochs", 0), "local_epochs"),
    "two thousand million epochs": (setting("train.local_epochs", 2**31 - 1), "local_epochs"),
    "batches of 0": (setting("train.batch_size", 0), "batch_size"),
    "batches of -1": (setting("train.batch_size", -1), "batch_size"),
    "a learning rate below 0": (setting("train.learning_rate", -0.1), "learning_rate"),
    "a learning rate of NaN": (setting("train.learning_rate", math.nan), "learning_rate"),
    "an infinite learning rate": (setting("train.learning_rate", math.inf), "learning_rate"),
    "a momentum of 2": (setting("train.momentum", 2.0), "momentum"),
    "a weight decay of NaN": (setting("train.weight_decay", math.nan), "weight_decay"),
    "a pull of minus 1": (setting("train.proximal_mu", -1.0), "proximal_mu"),
    "a round of 0": (setting("round", 0), "round"),
    "a seed of -1": (setting("seed", -1), "seed"),
    "a round before that is to come": (setting("previous_round", 2), "previous_round"),
    "no token": (setting("task_token", b""), "task_token"),
    "a token of 3 MB": (setting("task_token", bytes(3_000_000)), "task_token"),
    "a model of 0 bytes": (setting("model.digest.size_bytes", 0), "model.digest.size_bytes"),
    "a model of -1 byte": (setting("model.digest.size_bytes", -1), "model.digest.size_bytes"),
    "a digest that is none": (setting("model.digest.blake3", "A" * 64), "model.digest.blake3"),
    "no work": (lambda assignment: assignment.ClearField("work"), "work"),
    "a nested hyperparameter": (
        lambda assignment: assignment.train.hyperparameters.update({"a": {"b": 1}}),
        "hyperparameters",
    ),
    "a hyperparameter of NaN": (
        lambda assignment: assignment.train.hyperparameters.update({"a": math.nan}),
        "hyperparameters",
    ),
    "fine-tuning in no epochs": (
        lambda assignment: assignment.evaluate.fine_tune.SetInParent(),
        "local_epochs",
    ),
    "an algorithm without a name": (
        lambda assignment: assignment.train.algorithm.SetInParent(),
        "algorithm.name",
    ),
    "an algorithm in which clients have no part": (
        lambda assignment: scaffold(assignment, name="fedavg"),
        "algorithm.name",
    ),
    "a scalar that is infinite": (
        lambda assignment: scaffold(assignment).scalars.update({"a": math.inf}),
        "algorithm.scalars",
    ),
    "33 scalars": (
        lambda assignment: scaffold(assignment).scalars.update(dict.fromkeys(map(str, range(33)))),
        "algorithm.scalars",
    ),
    "a control variate without a digest": (
        lambda assignment: scaffold(assignment).payloads["control"].SetInParent(),
        "algorithm.payloads: 'control'.size_bytes",
    ),
}


@pytest.mark.parametrize("lie", ASSIGNMENTS)
def test_an_assignments_numbers_are_within_their_bounds(server, tmp_path, lie, capfd):
    tell, field = ASSIGNMENTS[lie]
    tell(server.assignment)
    with pytest.raises(BrokenPromise, match=rf"^the server breaks its contract: {field}"):
        take_part(server, tmp_path)
    assert "Traceback" not in "".join(capfd.readouterr())
    assert (server.calls["poll"], server.calls["pull"]) == (1, 0)


# --------------------------------------------------------------------- models


def deep(data):
    header = b"[" * 100_000
    return len(header).to_bytes(8, "little") + header


def huge(data):
    header = b'{"w":{"dtype":"F32","shape":[%s],"data_offsets":[0,0]}}' % b",".join(
        [b"9" * 19] * 500
    )
    return len(header).to_bytes(8, "little") + header


MODELS = {
    "a pickle": lambda _: pickle.dumps({"weight": 1}),
    "nothing but zeros": lambda data: bytes(len(data)),
    "half of one": lambda data: data[: len(data) // 2],
    "one with more behind it": lambda data: data + b"more",
    "a header as deep as a stack": deep,
    "a shape of 500 dimensions": huge,
    "a tensor too few": lambda data: poison(data, bias=None),
    "a tensor too many": lambda data: poison(data, more=torch.zeros(2)),
    "another shape": lambda data: poison(data, bias=torch.zeros(4)),
    "another dtype": lambda data: poison(data, bias=torch.zeros(3, dtype=torch.float64)),
    "a dtype that torch has and nobody else": lambda data: data.replace(b'"F32"', b'"F8_"', 1),
}


@pytest.mark.parametrize("lie", MODELS)
def test_what_is_no_model_of_the_task_is_refused_in_one_line(server, tmp_path, lie, capfd):
    server.assignment.model.CopyFrom(server.holds(MODELS[lie](model_of())))
    with pytest.raises(BrokenPromise, match="sent"):
        take_part(server, tmp_path)
    assert "Traceback" not in "".join(capfd.readouterr())
    assert server.calls["push"] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_a_model_of_extreme_values_is_work_that_failed(server, tmp_path, value, capfd):
    model = poison(model_of(), weight=torch.full((3, 4), value))
    server.assignment.model.CopyFrom(server.holds(model))
    take_part(server, tmp_path)
    assert "Traceback" not in "".join(capfd.readouterr())
    assert server.requests[0].failure.reason == "UPDATE_NOT_FINITE"


@pytest.mark.parametrize("lie", ["another shape", "a tensor too many", "a pickle"])
def test_a_control_variate_has_the_models_tensors(server, tmp_path, lie, capfd):
    control = MODELS[lie](model_of())
    server.payloads["control"] = (pb.ModelRef(digest=digest_of(control)), control)
    scaffold(server.assignment).payloads["control"].CopyFrom(digest_of(control))
    with pytest.raises(BrokenPromise, match="sent"):
        take_part(server, tmp_path)
    assert "Traceback" not in "".join(capfd.readouterr())


def header(server):
    return pb.PullModelResponse(header=server.assignment.model)


def chunk(data=b"", offset=0, last=False):
    return pb.PullModelResponse(chunk=pb.Chunk(offset=offset, data=data, finish_write=last))


def forever(*messages):
    while True:
        yield from messages


STREAMS = {
    "empty chunks without end": lambda server: chain([header(server)], forever(chunk())),
    "headers without end": lambda server: forever(header(server)),
    "no header": lambda server: [chunk(model_of(), last=True)],
    "nothing": lambda server: [],
    "messages of no kind": lambda server: forever(pb.PullModelResponse()),
    "a chunk after the last": lambda server: [
        header(server),
        chunk(server.payloads[0][1], last=True),
        chunk(b"", len(server.payloads[0][1]), last=True),
    ],
    "a chunk at another place": lambda server: [header(server), chunk(b"abc", 2**62)],
    "a chunk at a place below zero": lambda server: [header(server), chunk(b"abc", -3)],
    "more than was said": lambda server: [header(server), chunk(bytes(1 << 20))],
}


@pytest.mark.parametrize("lie", STREAMS)
def test_a_stream_that_brings_nothing_is_given_up_after_three(
    server, tmp_path, lie, monkeypatch, capfd
):
    def lying(self, request, context):
        self.count("pull", context)
        yield from STREAMS[lie](self)

    monkeypatch.setattr(Server, "PullModel", lying)
    with Server() as liar, pytest.raises(RunFailed, match="model 0 came damaged 3 times"):
        take_part(liar, tmp_path)
    assert liar.calls["pull"] == 3
    assert "Traceback" not in "".join(capfd.readouterr())


# -------------------------------------------------------------------- uploads


@pytest.mark.parametrize(
    "response",
    [
        pb.PushUpdateResponse(),
        pb.PushUpdateResponse(outcome=99),
        pb.PushUpdateResponse(
            outcome="OUTCOME_OFFSET_MISMATCH", upload=pb.Upload(committed_size_bytes=-5)
        ),
    ],
)
def test_an_outcome_that_nobody_knows_ends_the_client(server, tmp_path, response):
    server.outcome = response
    with pytest.raises(BrokenPromise, match=r"outcome|committed_size_bytes"):
        take_part(server, tmp_path)
    assert server.calls["push"] == 1


# ---------------------------------------------------------------------- pace


def answers(monkeypatch, method, answer):
    """Let every call of a method get this answer."""

    def lying(self, request, context):
        self.count(method, context)
        return answer(self, context)

    monkeypatch.setattr(Server, method, lying)


def refuse(code, reason, **details):
    """Return an answer: a status with ErrorInfo, and perhaps with RetryInfo."""

    def answer(_, context):
        status = status_pb2.Status(code=code.value[0], message="no")
        info = error_details_pb2.ErrorInfo(reason=reason, domain="federated.v1")
        status.details.add().Pack(info)
        if "retry" in details:
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=details["retry"]))
        context.abort_with_status(rpc_status.to_status(status))

    return answer


FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
PACES = {
    "empty polls": ("PollTaskAssignment", lambda *_: pb.PollTaskAssignmentResponse()),
    "the same work": (
        "PollTaskAssignment",
        lambda server, _: pb.PollTaskAssignmentResponse(assignment=server.assignment),
    ),
    "sessions that are lost": (
        "PollTaskAssignment",
        refuse(grpc.StatusCode.NOT_FOUND, "SESSION_UNKNOWN"),
    ),
    "come again at once": ("Join", refuse(FULL, "JOINING_PACED", retry=Duration())),
    "come again before now": ("Join", refuse(FULL, "JOINING_PACED", retry=Duration(seconds=-9))),
}


@pytest.mark.parametrize("lie", PACES)
def test_a_server_with_nothing_to_do_is_not_asked_all_the_time(tmp_path, monkeypatch, lie):
    method, answer = PACES[lie]
    answers(monkeypatch, method, answer)
    stop = Ticking(60.0)
    with Server() as liar, pytest.raises(Stopped):
        take_part(liar, tmp_path, stop=stop, max_wait=1e9)
    # A few at first, for what may be chance; then one in five seconds and less.
    assert 0 < liar.calls[method] < 30 or lie == "the same work"
    assert liar.calls[method] < MOST_CALLS
    assert min(stop.seconds) >= 0.1


def test_come_again_in_ten_thousand_years_is_in_an_hour(tmp_path, monkeypatch):
    answers(
        monkeypatch, "Join", refuse(FULL, "CLIENTS_FULL", retry=Duration(seconds=315_000_000_000))
    )
    stop = Ticking(60.0)
    with Server() as liar, pytest.raises(Stopped):
        take_part(liar, tmp_path, stop=stop)
    assert 3600 <= stop.seconds[0] <= 4320


def test_details_of_an_error_that_are_none_are_passed_over(tmp_path, monkeypatch, capfd):
    def answer(_, context):
        context.set_trailing_metadata([("grpc-status-details-bin", b"\xff\xff")])
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no\x1b]0;owned\x07")

    answers(monkeypatch, "Join", answer)
    with Server() as liar, pytest.raises(RunFailed) as caught:
        take_part(liar, tmp_path)
    assert str(caught.value).isprintable()
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_session_whose_heartbeats_are_refused_is_a_lost_one(server, tmp_path, monkeypatch):
    answers(monkeypatch, "Heartbeat", refuse(grpc.StatusCode.PERMISSION_DENIED, "NOT_A_CLIENT"))
    with Server() as liar:
        runner = take_part(liar, tmp_path)
        assert not runner.lost.is_set()
        runner.context.connection = type(runner.context.connection)(
            liar.address, None, 2.0, runner.context.stop
        )
        runner.busy, runner.session_token, runner.last_beat = True, "secret", -1e9
        runner.beat()
        runner.context.connection.close()
    assert runner.lost.is_set()


def test_a_client_that_hears_of_another_process_as_it_works_ends_and_does_not_join_again(
    tmp_path, monkeypatch
):
    superseded = refuse(grpc.StatusCode.ABORTED, "SESSION_SUPERSEDED")
    answers(monkeypatch, "Heartbeat", superseded)
    poll, gate = Server.PollTaskAssignment, tmp_path / "never"

    def answer(self, request, context):
        return superseded(request, context) if self.calls["poll"] else poll(self, request, context)

    monkeypatch.setattr(Server, "PollTaskAssignment", answer)
    monkeypatch.setenv("GATE", str(gate))
    task = "tests.tasks:Gated"
    with Server(task) as liar, ThreadPoolExecutor(1) as pool:
        runner = runner_of(liar, tmp_path, [task])
        ending = pool.submit(runner.run)
        while not Path(f"{gate}.reached").exists():
            assert not ending.done()
        runner.last_beat = -1e9
        runner.beat()
        with pytest.raises(RunFailed, match=r"a --partition of its own$"):
            ending.result(30)
        runner.context.connection.close()
    assert liar.calls["join"] == 1


def test_a_client_without_the_servers_task_is_told_how_to_take_part(tmp_path, monkeypatch):
    answers(monkeypatch, "Join", refuse(grpc.StatusCode.INVALID_ARGUMENT, "TASK_MISMATCH"))
    said = "^--task: .*; if you trust that code, start this client with that --task$"
    with Server() as liar, pytest.raises(InputError, match=said):
        take_part(liar, tmp_path)


def test_what_ended_the_run_is_told_in_one_line_that_a_terminal_shows(server, tmp_path):
    server.end.failure_message = "\x1b]0;owned\x07\x1b[2Jlong\nago" + "x" * 100_000
    with pytest.raises(RunFailed) as caught:
        take_part(server, tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


# --------------------------------------------------- what the client holds itself to


def test_work_whose_deadline_has_passed_is_not_begun(server, tmp_path):
    server.assignment.time_remaining.CopyFrom(Duration(seconds=-1))
    take_part(server, tmp_path)
    assert (server.calls["pull"], server.calls["push"]) == (0, 0)


def test_training_ends_at_the_rounds_deadline(tmp_path, monkeypatch):
    monkeypatch.setenv("GATE", str(tmp_path / "never"))
    with Server("tests.tasks:Gated") as server:
        server.assignment.time_remaining.CopyFrom(Duration(nanos=300_000_000))
        take_part(server, tmp_path, ["tests.tasks:Gated"])
    assert (tmp_path / "never.reached").exists()
    assert server.calls["push"] == 0


def test_chunks_are_no_larger_than_announced(tmp_path):
    most = 1 << 16
    with Server(STEPS, "linear") as server:
        server.joined.max_chunk_size_bytes = most
        take_part(server, tmp_path, [STEPS])
        size = len(server.pushed)
    assert size == server.header.digest.size_bytes
    assert max(server.chunk_sizes) == most
    assert len(server.chunk_sizes) == -(-size // most)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("limits.max_num_examples", 99, "this client holds 100 examples"),
        ("max_update_size_bytes", 100, "an update has .* bytes"),
        ("limits.max_metrics", 0, "the task reports 1 metrics"),
        ("limits.max_metric_name_length", 3, "the task reports a metric 'loss'"),
    ],
)
def test_what_the_server_would_refuse_is_said_here_and_reported(
    server, tmp_path, field, value, said
):
    setting(field, value)(server.joined)
    with pytest.raises(LimitExceeded, match=said):
        take_part(server, tmp_path)
    assert server.calls["push"] == 0
    assert server.requests[0].failure.reason == "LIMIT_EXCEEDED"


def test_an_update_that_is_too_long_is_work_that_failed(server, tmp_path):
    server.joined.limits.max_update_norm = 1e-6
    take_part(server, tmp_path)
    assert server.calls["push"] == 0
    assert server.requests[0].failure.reason == "UPDATE_TOO_LONG"


@pytest.mark.parametrize("failing", ["data", "models"])
def test_a_tasks_own_code_that_fails_at_the_start_is_wrong_input_with_where(
    tmp_path, monkeypatch, failing, capfd
):
    def fail(*_, **__):
        raise LookupError("no\nsuch scanner")

    model = model_of()
    monkeypatch.setattr(Tiny, failing, fail if failing == "data" else {"linear": fail})
    said = r"^--task: .*LookupError: no such scanner \(.*test_lying_servers\.py, line \d+\)$"
    with Server(data=model) as server, pytest.raises(InputError, match=said):
        take_part(server, tmp_path)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_lease_gets_three_heartbeats(server, tmp_path):
    server.joined.lease_duration.CopyFrom(Duration(seconds=3))
    runner = take_part(server, tmp_path)
    assert runner.heartbeat_interval == 1.0


def test_no_limits_are_those_of_the_contract(server, tmp_path):
    server.joined.ClearField("limits")
    take_part(server, tmp_path)
    assert server.calls["push"] == 1


def test_bytes_that_are_no_message_are_one_line_and_a_status():
    handler = grpc.unary_unary_rpc_method_handler(lambda *_: b"\xff\xff")
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("federated.v1.Coordinator", {"Join": handler})]
    )
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    flags = ("--server", address, "--partition", "0", "--max-wait", "0.5")
    command = [sys.executable, "-m", "client", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    server.stop(0).wait()
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(f"error: no server at {address} for 0.5 s")
