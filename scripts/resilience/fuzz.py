"""Malformed calls by the thousand: each has a documented outcome, and the server stays as it was.

A few clients join and get real assignments, so that their tokens reach behind the first checks.
One of them always fails, and all updates together are the quorum: the model stays, whatever
gets through.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.table import Table

from common.errors import RunFailed
from protos import federated_pb2 as pb
from protos import federated_pb2_grpc as pb_grpc
from scripts.admin_channel import bearer, server_of
from scripts.resilience.calls import JOIN, METHODS, UNKNOWN_METHOD, Call, Caller, draw
from scripts.resilience.invariants import no_bugs
from scripts.resilience.sending import garbage, send, speak
from scripts.resilience.vitals import at_rest, growth, table_of, vitals
from scripts.testbed.crowd import Client
from scripts.testbed.servers import TASK, Server, serving
from server.storage import layout

_CALLERS = 16
# In one attempt of the round.
_BATCH = 20
_GARBAGE_SHARE = 0.03
_GARBAGE, _UNKNOWN = "garbage on a socket", "unknown method"
_GARBAGE_OUTCOMES = {"ended by the server", "ended by us"}
_LAST_ROUND_SECONDS = 60.0
# Of its own connection, which the others' failures don't touch.
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]

Tally = Counter[tuple[str, str]]


def run(messages: int, seed: int, as_json: bool) -> None:
    """Fuzz a server, and print what came of it.

    Raises:
        RunFailed: an outcome is not documented, or the server is not as it was.
    """
    flags = ("--model", "10k", "--rounds", 1, "--max-attempts", 1_000_000)
    clients = _CALLERS + 1
    wanted = ("--min-clients", "--num-partitions", "--report-goal", "--quorum")
    everyone = [value for flag in wanted for value in (flag, clients)]
    with serving(*flags, *everyone) as server:
        fuzz = _Fuzz(server, seed)
        try:
            asyncio.run(fuzz.run(messages))
            server.process.wait()
        except* (grpc.aio.AioRpcError, TimeoutError, RunFailed) as errors:
            fuzz.problems.append(f"the server does not serve any more: {errors.exceptions[0]!r}")
        fuzz.check_log()
    fuzz.show(as_json)
    if fuzz.problems:
        counted = Counter(fuzz.problems).most_common()
        raise RunFailed("; ".join(f"{problem} ({count})" for problem, count in counted))


class _Fuzz:
    def __init__(self, server: Server, seed: int) -> None:
        self._server = server
        self._seed = seed
        admin = server_of(server.run)
        self._token = admin.token
        self._addresses = {False: server.address, True: admin.address}
        model = layout.model(server.run).read_bytes()
        self._callers = [Caller(_name(n), n, model) for n in range(_CALLERS)]
        self._channels: list[dict[bool, grpc.aio.Channel]] = []
        self._tally: Tally = Counter()
        self._left = 0
        self._seconds = 0.0
        self._before = self._after = vitals(server.process)
        self.problems: list[str] = []

    async def run(self, messages: int) -> None:
        """Warm up, measure, send, measure again, and let a round be completed."""
        model = (await self._get_run()).model
        keeper = asyncio.create_task(self._keep_failing())
        # Open all the time, so that what is counted at rest is the same connections.
        self._channels = [
            {
                is_admin: grpc.aio.insecure_channel(address, options=_OPTIONS)
                for is_admin, address in self._addresses.items()
            }
            for _ in self._callers
        ]
        await self._send(max(messages // 4, 1000))
        self._before = await asyncio.to_thread(at_rest, self._server.process)
        self._tally.clear()
        began = time.monotonic()
        await self._send(messages)
        self._seconds = time.monotonic() - began
        self._after = await asyncio.to_thread(at_rest, self._server.process)
        self.problems += growth(self._before, self._after)
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper
        if (await self._get_run()).model != model:
            self.problems.append("the model has changed")
        await self._check_health()
        await self._complete_round()
        for channels in self._channels:
            for channel in channels.values():
                await channel.close()

    async def _send(self, messages: int) -> None:
        self._left = messages
        async with asyncio.TaskGroup() as group:
            for caller in self._callers:
                group.create_task(self._misbehave(caller))

    async def _misbehave(self, caller: Caller) -> None:
        rng = random.Random(f"{self._seed} {caller.name} {self._left}")
        channels = self._channels[caller.partition]
        stub = pb_grpc.CoordinatorStub(channels[False])
        while self._left > 0:
            await _behave(stub, caller)
            for _ in range(_BATCH):
                self._left -= 1
                if rng.random() < _GARBAGE_SHARE:
                    address = self._addresses[rng.random() < 0.5]
                    outcome = await speak(address, garbage(rng))
                    self._count(_GARBAGE, outcome, outcome in _GARBAGE_OUTCOMES)
                else:
                    call = draw(rng, caller, self._callers)
                    await self._make(channels[call.is_admin], call, caller)
            await _fail(stub, caller)
        # So that the attempt ends, and its uploads' files are closed.
        await stub.Leave(pb.LeaveRequest(session_token=caller.session), timeout=30)

    async def _make(self, channel: grpc.aio.Channel, call: Call, caller: Caller) -> None:
        outcome, answer = await send(channel, call, self._token)
        method = METHODS.get(call.path)
        if method is None or call.kind != method.kind:
            self._count(_UNKNOWN, outcome, outcome in UNKNOWN_METHOD)
            return
        self._count(call.path, outcome, method.documents(outcome))
        if call.path == JOIN and answer:
            token = pb.JoinResponse.FromString(answer).session_token
            if token != caller.session:  # Let in under another name: nobody is to wait for it.
                stub = pb_grpc.CoordinatorStub(channel)
                await stub.Leave(pb.LeaveRequest(session_token=token), timeout=30)

    def _count(self, method: str, outcome: str, documented: bool) -> None:
        name = method.rpartition("/")[2]
        self._tally[name, outcome] += 1
        if not documented:
            self.problems.append(f"{name} ended with {outcome}")

    async def _keep_failing(self) -> None:
        caller = Caller(_name(_CALLERS), _CALLERS, b"")
        async with grpc.aio.insecure_channel(self._server.address, options=_OPTIONS) as channel:
            stub = pb_grpc.CoordinatorStub(channel)
            while True:
                await _behave(stub, caller)
                await _fail(stub, caller)

    async def _get_run(self) -> pb.Run:
        async with grpc.aio.insecure_channel(self._addresses[True]) as channel:
            stub, shown = pb_grpc.AdminStub(channel), bearer(self._token)
            return (await stub.GetRun(pb.GetRunRequest(), timeout=30, metadata=shown)).run

    async def _check_health(self) -> None:
        async with grpc.aio.insecure_channel(self._server.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            response = await stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
        if response.status != health_pb2.HealthCheckResponse.SERVING:
            self.problems.append("the server is not healthy")

    async def _complete_round(self) -> None:
        """Let good clients under the same names train the one round of the run."""
        gate = asyncio.Semaphore(_CALLERS)
        clients = [Client(self._server.address, n, TASK) for n in range(_CALLERS + 1)]
        async with asyncio.timeout(_LAST_ROUND_SECONDS):
            await asyncio.gather(*(client.join(gate) for client in clients))
            await asyncio.gather(*(client.poll() for client in clients))
            await asyncio.gather(*(client.leave() for client in clients))

    def check_log(self) -> None:
        """Look for bugs in what the server has written."""
        log = (self._server.run.parent / "server.log").read_text()
        self.problems += no_bugs(log.splitlines())
        if not self._server.events("run ended"):
            self.problems.append("no round could be completed afterwards")

    def show(self, as_json: bool) -> None:
        """Print the figures."""
        count = self._tally.total()
        if as_json:
            for (method, outcome), number in sorted(self._tally.items()):
                print(json.dumps({"method": method, "outcome": outcome, "calls": number}))
            summary: dict[str, Any] = {"calls": count, "seed": self._seed}
            summary |= {"seconds": round(self._seconds, 1)}
            summary |= {"before": self._before._asdict(), "after": self._after._asdict()}
            print(json.dumps(summary | {"problems": len(self.problems)}), flush=True)
            return
        table = Table("method", "outcome", "calls")
        for (method, outcome), number in sorted(self._tally.items()):
            table.add_row(method, outcome, str(number))
        console = Console()
        console.print(table)
        console.print(f"{count} calls in {self._seconds:.0f} s, seed {self._seed}")
        console.print(table_of(self._before, self._after))


def _name(number: int) -> str:
    return f"client-{number:05d}"


async def _behave(stub: Any, caller: Caller) -> None:  # noqa: ANN401
    """Join, if need be again, and get the work if there is some."""
    request = pb.JoinRequest(
        client_id=caller.name, instance_id="fuzz", task_names=[TASK], partition=caller.partition
    )
    caller.session = (await stub.Join(request, timeout=30)).session_token
    poll = pb.PollTaskAssignmentRequest(session_token=caller.session)
    with suppress(grpc.aio.AioRpcError):  # Another caller may have taken the name.
        response = await stub.PollTaskAssignment(poll, timeout=2.5)
        caller.assignment = response.assignment if response.HasField("assignment") else None


async def _fail(stub: Any, caller: Caller) -> None:  # noqa: ANN401
    """Say that the work can't be done, so that the next attempt begins soon."""
    failure = pb.TaskFailure(reason="FUZZ")
    request = pb.ReportTaskResultRequest(
        session_token=caller.session, task_token=caller.task_token, failure=failure
    )
    with suppress(grpc.aio.AioRpcError):
        await stub.ReportTaskResult(request, timeout=30)
