"""Valid messages at the wrong moment, from several sessions at once, to a server under load.

Callers hold real assignments of a model whose validation takes a while. Beside a good upload they
send others for the same token, report failures, leave, join as another process, pull old models.
What the server may do with that is recomputed here: each committed model is the mean of updates
that it has acknowledged. An update's values are all the same, so files that were mixed show.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
from rich.console import Console
from rich.table import Table

from common.errors import RunFailed
from common.tensors import Digest, digest_bytes
from common.transfer import pieces
from protos import federated_pb2 as pb
from protos import federated_pb2_grpc as pb_grpc
from scripts.admin_channel import bearer, server_of
from scripts.resilience import invariants
from scripts.resilience.calls import COORDINATOR, METHODS, PUSH
from scripts.resilience.sending import name_of
from scripts.testbed.servers import Server, serving
from server.run.assignments import Work, task_token
from server.storage import layout

TASK = "scripts.resilience.tasks:Zeros"
_CALLERS = 5
_FLAGS = (
    *("--rounds", 1_000_000, "--max-attempts", 1_000_000, "--num-partitions", _CALLERS + 1),
    # Some rounds reach their goal, some end at the deadline, and some miss their quorum.
    *("--min-clients", 3, "--report-goal", 4, "--quorum", 3, "--report-deadline", 6),
    *("--lease", 10, "--keep-rounds", 2),
)
# Of an honest client that is never disturbed by others, in any five seconds.
_MOST_CALLS_A_SECOND = 20.0
_WINDOW_SECONDS = 5.0
_TRIES = 10
_SILENT_SECONDS = 0.1
_END_SECONDS = 120.0
_COMBINATIONS = 1000
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]


class _Payload(NamedTuple):
    """An update of one value everywhere, and the examples that it claims."""

    value: float
    num_examples: int
    data: bytes
    digest: Digest


@dataclass
class _Sent:
    """An upload: the value and examples of its update, and what came of it, if anything did."""

    value: float
    num_examples: int
    whole: bool = False
    outcome: str | None = None


@dataclass
class _Caller:
    """A client id, with the session and the work that it holds now."""

    number: int
    rng: random.Random
    stub: Any
    session: str = ""
    instances: int = 0
    assignment: pb.TaskAssignment | None = None
    closed: list[pb.TaskAssignment] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"client-{self.number}"


_Action = Callable[[_Caller, pb.TaskAssignment], Awaitable[object]]


def run(seconds: int, seed: int, as_json: bool) -> None:
    """Let callers loose on a server, and print what came of it.

    Raises:
        RunFailed: it ended, answered what is not documented, or its models are not what they
            should be.
    """
    with serving(*_FLAGS, task=TASK) as server:
        timing = _Timing(server, seed)
        try:
            asyncio.run(timing.run(seconds))
        except* (RunFailed, TimeoutError, grpc.aio.AioRpcError) as errors:
            timing.problems.append(f"after {timing.seconds:.1f} s: {_first(errors)}")
        timing.check()
    timing.show(as_json)
    if timing.problems:
        counted = Counter(timing.problems).most_common(10)
        raise RunFailed("; ".join(f"{problem} ({count})" for problem, count in counted))


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Timing:
    def __init__(self, server: Server, seed: int) -> None:
        self._server = server
        self._seed = seed
        self._model = layout.model(server.run).read_bytes()
        self._start = 8 + int.from_bytes(self._model[:8], "little")
        self._began = time.monotonic()
        self._until = 0.0
        self._tally = Counter[tuple[str, str]]()
        self._sent = defaultdict[bytes, list[_Sent]](list)
        # Of a token whose upload is finished: what its client was told.
        self._settled: dict[bytes, str] = {}
        self._push_seconds = 0.5
        self._superseded = self._sessions = 0
        self._stopped = self._ended = False
        self._honest_calls: list[float] = []
        self._rounds: dict[str, int] = {}
        self.problems: list[str] = []

    @property
    def seconds(self) -> float:
        """Return how long it goes on."""
        return time.monotonic() - self._began

    async def run(self, seconds: int) -> None:
        """Disturb, then let all behave until the run has ended."""
        self._until = time.monotonic() + seconds
        async with asyncio.timeout(seconds + _END_SECONDS), asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch())
            lives = [group.create_task(self._live(n, self._misbehave)) for n in range(_CALLERS)]
            lives.append(group.create_task(self._live(_CALLERS, self._behave)))
            await asyncio.sleep(seconds)
            self._stopped = True
            await self._stop_run()
            await asyncio.wait(lives)
            watch.cancel()

    async def _watch(self) -> None:
        while not self._server.process.ended:  # noqa: ASYNC110 - a process tells nothing
            await asyncio.sleep(0.05)
        self._ended = True
        if self._server.process.status or not self._stopped:
            raise RunFailed(f"the server ended with {self._server.process.status}")

    async def _stop_run(self) -> None:
        admin = server_of(self._server.run)
        async with grpc.aio.insecure_channel(admin.address) as channel:
            shown = bearer(admin.token)
            await pb_grpc.AdminStub(channel).StopRun(
                pb.StopRunRequest(), timeout=30, metadata=shown
            )

    async def _live(self, number: int, turn: _Action) -> None:
        """Take turns until the run has ended; all behave from some time on."""
        async with grpc.aio.insecure_channel(self._server.address, options=_OPTIONS) as channel:
            rng = random.Random(f"{self._seed} {number}")
            caller = _Caller(number, rng, pb_grpc.CoordinatorStub(channel))
            await self._join(caller)
            while not await self._poll(caller):
                assignment = caller.assignment
                if assignment is None:
                    continue
                disturbing = time.monotonic() < self._until
                await (turn if disturbing else self._behave)(caller, assignment)
                caller.closed = [*caller.closed[-5:], assignment]
            await self._leave(caller)

    # ------------------------------------------------------------------ turns

    async def _behave(self, caller: _Caller, assignment: pb.TaskAssignment) -> None:
        """Upload until that is answered; one in three times train again, to other bytes."""
        if caller.rng.random() < 1 / 3 and time.monotonic() < self._until:
            # Its process was killed, and the next one is there before the server has noticed.
            older = asyncio.create_task(self._push(caller, assignment, self._payload(caller)))
            await asyncio.sleep(caller.rng.uniform(0, 1.2 * self._push_seconds))
            await self._join(caller, again=True)
            await self._upload(caller, assignment)
            await older
            return
        await self._upload(caller, assignment)

    async def _upload(self, caller: _Caller, assignment: pb.TaskAssignment) -> None:
        """Upload as a good client does it, until there is an outcome."""
        payload, offset = self._payload(caller), 0
        for _ in range(_TRIES):
            if caller.number == _CALLERS:
                self._honest_calls.append(time.monotonic())
            response = await self._push(caller, assignment, payload, offset)
            if response is None or response.upload.complete:
                return
            offset = response.upload.committed_size_bytes
        if caller.number == _CALLERS:  # The others may have disturbed themselves.
            self.problems.append(f"an honest client had to push {_TRIES} times")

    async def _misbehave(self, caller: _Caller, assignment: pb.TaskAssignment) -> None:
        """Upload, and do other things meanwhile."""
        rng = caller.rng
        others = [rng.choice(self._mischief) for _ in range(rng.randint(1, 4))]

        async def later(action: _Action) -> None:
            await asyncio.sleep(rng.uniform(0, 1.2 * self._push_seconds))
            await action(caller, assignment)

        if rng.random() < 0.1:  # Not before the deadline.
            await asyncio.sleep(7.0)
        push = self._push(caller, assignment, self._payload(caller))
        await asyncio.gather(push, *map(later, others))
        if rng.random() < 0.7:
            await self._upload(caller, assignment)
        await self._join(caller)

    @property
    def _mischief(self) -> Sequence[_Action]:
        uploads = (self._push_other_bytes, self._announce_other_size, self._push_half)
        return (
            *uploads,
            *uploads,
            self._push_closed,
            self._resume,
            self._get_upload,
            self._heartbeat,
            self._fail,
            self._evaluate,
            self._pull,
            lambda caller, _: self._poll(caller),
            lambda caller, _: self._leave(caller),
            lambda caller, _: self._join(caller, again=True),
        )

    async def _push_other_bytes(self, caller: _Caller, assignment: pb.TaskAssignment) -> None:
        await self._push(caller, assignment, self._payload(caller))

    async def _announce_other_size(self, caller: _Caller, assignment: pb.TaskAssignment) -> None:
        size = caller.rng.choice([0, self._start, len(self._model) // 2])
        data = bytes(size)
        payload = _Payload(0.0, 1, data, digest_bytes(data))
        await self._push(caller, assignment, payload, chunks=caller.rng.choice([0, None]))

    async def _push_half(self, caller: _Caller, assignment: pb.TaskAssignment) -> None:
        count = caller.rng.randrange(len(self._model) >> 20)
        await self._push(caller, assignment, self._payload(caller), chunks=count)

    async def _push_closed(self, caller: _Caller, _: pb.TaskAssignment) -> None:
        if caller.closed:
            await self._push(caller, caller.rng.choice(caller.closed), self._payload(caller))

    async def _resume(self, caller: _Caller, assignment: pb.TaskAssignment) -> None:
        """Break off half-way, ask, and go on."""
        payload = self._payload(caller)
        await self._push(caller, assignment, payload, chunks=len(self._model) >> 21)
        upload = await self._get_upload(caller, assignment)
        if upload is not None and not upload.upload.complete:
            held = upload.upload.committed_size_bytes
            await self._push(caller, assignment, payload, min(held, len(self._model)))

    async def _get_upload(self, caller: _Caller, assignment: pb.TaskAssignment) -> Any:  # noqa: ANN401
        token = assignment.task_token
        request = pb.GetUploadRequest(session_token=caller.session, task_token=token)
        response = await self._call(caller, "GetUpload", request)
        if response is not None and response.upload.complete:
            self._settled.setdefault(token, "complete")
        return response

    async def _heartbeat(self, caller: _Caller, assignment: pb.TaskAssignment) -> None:
        token = assignment.task_token
        request = pb.HeartbeatRequest(session_token=caller.session, task_token=token)
        await self._call(caller, "Heartbeat", request)

    async def _fail(self, caller: _Caller, assignment: pb.TaskAssignment) -> None:
        """Report a failure, sometimes twice."""
        request = pb.ReportTaskResultRequest(
            session_token=caller.session,
            task_token=assignment.task_token,
            failure=pb.TaskFailure(reason="FUZZ"),
        )
        for _ in range(caller.rng.randint(1, 2)):
            await self._call(caller, "ReportTaskResult", request)

    async def _evaluate(self, caller: _Caller, assignment: pb.TaskAssignment) -> None:
        request = pb.ReportTaskResultRequest(
            session_token=caller.session,
            task_token=assignment.task_token,
            evaluation=pb.EvaluationReport(num_examples=1, metrics={"loss": 1.0}),
        )
        await self._call(caller, "ReportTaskResult", request)

    async def _pull(self, caller: _Caller, assignment: pb.TaskAssignment) -> None:
        """Pull a model that may be old, or not yet there; read a little of it."""
        version = max(0, assignment.model.version + caller.rng.randint(-3, 1))
        request = pb.PullModelRequest(session_token=caller.session, model_version=version)
        call = caller.stub.PullModel(request, timeout=30)
        try:
            for _ in range(caller.rng.randint(0, 3)):
                await call.read()
            call.cancel()
            self._count("PullModel", "cancelled by us")
        except grpc.aio.AioRpcError as error:
            self._count("PullModel", name_of(error))

    # ------------------------------------------------------------------ calls

    async def _join(self, caller: _Caller, again: bool = False) -> None:
        """Get the session; `again`: as another process, which ends the older one's."""
        caller.instances += again
        request = pb.JoinRequest(
            client_id=caller.name,
            instance_id=f"fuzz-{caller.instances}",
            task_names=[TASK],
            partition=caller.number,
        )
        response = await self._call(caller, "Join", request)
        if response is not None and response.session_token != caller.session:
            caller.session = response.session_token
            self._sessions += 1

    async def _poll(self, caller: _Caller) -> bool:
        """Take the work that there is; return whether the run has ended."""
        known = dict(self._settled)
        caller.assignment = None
        request = pb.PollTaskAssignmentRequest(session_token=caller.session)
        if caller.number == _CALLERS:
            self._honest_calls.append(time.monotonic())
        response = await self._call(caller, "PollTaskAssignment", request, timeout=4.0)
        if response is None:
            await self._join(caller)
            return self._ended
        if response.HasField("assignment"):
            caller.assignment = response.assignment
            told = known.get(response.assignment.task_token)
            if told is not None:
                self.problems.append(f"work was given out whose upload was {told} before")
        return bool(response.HasField("run_end"))

    async def _leave(self, caller: _Caller) -> None:
        await self._call(caller, "Leave", pb.LeaveRequest(session_token=caller.session))

    async def _call(
        self,
        caller: _Caller,
        method: str,
        request: Any,  # noqa: ANN401
        timeout: float = 30.0,  # noqa: ASYNC109 - gRPC's
    ) -> Any:  # noqa: ANN401
        """Return the answer; None if it is a status."""
        try:
            response = await getattr(caller.stub, method)(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            self._count(method, outcome := name_of(error))
            # The server does not wait for those who come late.
            self._ended |= outcome.endswith("RUN_ENDED") or outcome.startswith("UNAVAILABLE")
            return None
        self._count(method, "OK")
        return response

    async def _push(
        self,
        caller: _Caller,
        assignment: pb.TaskAssignment,
        payload: _Payload,
        offset: int = 0,
        chunks: int | None = None,
    ) -> pb.PushUpdateResponse | None:
        """Upload; with `chunks` only so many, then break off. Return the answer, if it is one."""
        sent = _Sent(payload.value, payload.num_examples)
        uploads = self._sent[assignment.task_token]
        self._superseded += any(u.outcome is None and u.value != payload.value for u in uploads)
        uploads.append(sent)
        began = time.monotonic()
        silence = None if chunks is None else asyncio.Event()
        messages = _messages(caller.session, assignment, payload, offset)
        some = islice(messages, None if chunks is None else 1 + chunks)
        call = caller.stub.PushUpdate(_Messages(some, sent, silence), timeout=30)
        try:
            if silence is not None and await self._falls_silent(silence, call):
                call.cancel()
                self._count("PushUpdate", "cancelled by us")
                return None
            response: pb.PushUpdateResponse = await call
        except grpc.aio.AioRpcError as error:
            self._count("PushUpdate", name_of(error))
            return None
        sent.outcome = pb.PushUpdateResponse.Outcome.Name(response.outcome)
        self._count("PushUpdate", f"OK {sent.outcome}")
        if response.outcome == pb.PushUpdateResponse.OUTCOME_ACCEPTED:
            self._push_seconds += 0.2 * (time.monotonic() - began - self._push_seconds)
        if response.upload.complete:
            self._settled.setdefault(assignment.task_token, sent.outcome)
        return response

    async def _falls_silent(self, silence: asyncio.Event, call: Any) -> bool:  # noqa: ANN401
        """Return whether an upload that breaks off is not answered before."""
        ends = [asyncio.create_task(silence.wait()), asyncio.create_task(call.code())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(ends[1:], timeout=_SILENT_SECONDS)
        for end in ends:
            end.cancel()
        return not call.done()

    def _count(self, method: str, outcome: str) -> None:
        path = PUSH if method == "PushUpdate" else COORDINATOR + method
        self._tally[method, outcome] += 1
        going = self._stopped and outcome.startswith("UNAVAILABLE")
        if not going and not METHODS[path].documents(outcome):
            self.problems.append(f"{method} ended with {outcome}")

    def _payload(self, caller: _Caller) -> _Payload:
        """Return an update that nobody else sends; sums of a few are exact in float64."""
        value = 1 + (caller.rng.randrange(1 << 12) * (_CALLERS + 1) + caller.number) / (1 << 16)
        values = np.full((len(self._model) - self._start) // 4, value, np.float32)
        data = self._model[: self._start] + values.tobytes()
        return _Payload(value, caller.rng.randint(1, 100), data, digest_bytes(data))

    # ------------------------------------------------------------------ afterwards

    def check(self) -> None:
        """Recompute each round's model from what was acknowledged, and read the log."""
        run = self._server.run
        for name, event in (("attempts", "began"), ("abandoned",) * 2, ("committed",) * 2):
            self._rounds[name] = len(self._server.events(f"round {event}"))
        if self._server.process.ended:
            metrics, clients = _rows(run / layout.METRICS), _rows(run / layout.CLIENTS)
            run_id = json.loads((run / layout.CONFIG).read_text())["run_id"]
            self.problems += self._models(run_id, metrics, clients)
        log = (run.parent / "server.log").read_text().splitlines()
        self.problems += invariants.no_bugs(log)
        calls = self._honest_calls
        for n, began in enumerate(calls):
            window = sum(began <= at < began + _WINDOW_SECONDS for at in calls[n:])
            if window > _MOST_CALLS_A_SECOND * _WINDOW_SECONDS:
                self.problems.append(f"an honest client made {window} calls in 5 s")
                break

    def _models(self, run_id: str, metrics: Sequence[Any], clients: Sequence[Any]) -> list[str]:
        problems, model = [], np.float32(0)
        for row in metrics:
            number, attempt = row["round"], row["attempt"]
            counted = {
                r["client_id"] for r in clients if r["round"] == number and r["num_examples"]
            }
            choices = []
            for name in sorted(f"client-{n}" for n in range(_CALLERS + 1)):
                token = task_token(run_id, number, attempt, name, Work.TRAIN).encode()
                sent = self._sent.get(token, [])
                accepted = [u for u in sent if u.outcome == "OUTCOME_ACCEPTED"]
                if name in counted:
                    unanswered = [u for u in sent if u.whole and u.outcome is None]
                    choices.append([*accepted, *unanswered])
                elif accepted:
                    problems.append(f"{name}'s acknowledged update of round {number} is lost")
            found = self._found(model, choices, row["model_blake3"])
            if found is None:
                return [
                    *problems,
                    f"round {number}: the model is not the mean of what was accepted",
                ]
            model = found
        return problems

    def _found(
        self, model: np.float32, choices: list[list[_Sent]], digest: str
    ) -> np.float32 | None:
        """Return the model's value if some choice of the updates gives these bytes."""
        tried = set[float]()
        for updates in islice(product(*choices), _COMBINATIONS):
            total = sum(u.num_examples for u in updates)
            step = sum(float(np.float32(u.value)) * u.num_examples for u in updates) / total
            value = np.float32(float(model) + step)
            if float(value) not in tried:
                tried.add(float(value))
                values = np.full((len(self._model) - self._start) // 4, value, np.float32)
                data = self._model[: self._start] + values.tobytes()
                if digest_bytes(data).blake3 == digest:
                    return value
        return None

    def show(self, as_json: bool) -> None:
        """Print the figures."""
        figures = {
            "calls": self._tally.total(),
            "sessions": self._sessions,
            "seconds": round(self.seconds, 1),
            "superseded": self._superseded,
            **self._rounds,
            "seed": self._seed,
            "failures": len(self.problems),
        }
        outcomes = sorted(self._tally.items())
        if as_json:
            for (method, outcome), number in outcomes:
                print(json.dumps({"method": method, "outcome": outcome, "calls": number}))
            print(json.dumps(figures), flush=True)
            return
        table = Table("method", "outcome", "calls")
        for (method, outcome), number in outcomes:
            table.add_row(method, outcome, str(number))
        console = Console()
        console.print(table)
        console.print(", ".join(f"{name} {value}" for name, value in figures.items()))


class _Messages:
    """An upload's messages; nothing follows them, not even an end, if they break off in silence."""

    def __init__(
        self, messages: Iterator[pb.PushUpdateRequest], sent: _Sent, silence: asyncio.Event | None
    ) -> None:
        self._messages = messages
        self._sent = sent
        self._silence = silence

    def __aiter__(self) -> _Messages:
        return self

    async def __anext__(self) -> pb.PushUpdateRequest:
        message = next(self._messages, None)
        if message is None:
            if self._silence is None:
                raise StopAsyncIteration
            self._silence.set()
            await asyncio.Event().wait()
            raise StopAsyncIteration
        # Once the last one is out, the upload may count, whatever is heard of it.
        self._sent.whole = self._sent.whole or message.chunk.finish_write
        return message


def _messages(
    session: str, assignment: pb.TaskAssignment, payload: _Payload, offset: int
) -> Iterator[pb.PushUpdateRequest]:
    digest = payload.digest
    header = pb.PushUpdateHeader(
        session_token=session,
        task_token=assignment.task_token,
        base_model=assignment.model,
        digest=pb.Digest(blake3=digest.blake3, size_bytes=digest.size_bytes),
        write_offset=offset,
        num_examples=payload.num_examples,
    )
    yield pb.PushUpdateRequest(header=header)
    for piece in pieces(memoryview(payload.data), min(offset, len(payload.data))):
        chunk = pb.Chunk(offset=piece.offset, data=bytes(piece.data), finish_write=piece.last)
        yield pb.PushUpdateRequest(chunk=chunk)


def _rows(path: Path) -> list[Any]:
    with suppress(FileNotFoundError):
        return [json.loads(line) for line in path.read_text().splitlines()]
    return []
