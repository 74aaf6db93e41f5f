"""Many light clients in one process: the real protocol, a connection each, and no torch.

`python -m scripts.testbed.crowd ADDRESS FIRST COUNT TASK` says `waiting` once all have joined,
and then takes part until the run ends. An update is zeros.
"""

import asyncio
import math
import sys
from collections.abc import Iterator
from contextlib import suppress

import grpc

from client.connection import retry_delay
from common.process import keep_chunks_allocated
from common.tensors import digest_bytes
from common.transfer import pieces
from protos import federated_pb2 as pb
from protos import federated_pb2_grpc as pb_grpc

# The server answers after 30 seconds at the latest.
_POLL_SECONDS = 33.0
_JOINING_AT_ONCE = 64
# The second: others were sooner.
_GOOD = (pb.PushUpdateResponse.OUTCOME_ACCEPTED, pb.PushUpdateResponse.OUTCOME_NOT_WANTED)
# Otherwise all channels of a process share one connection.
_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


class Client:
    """One light client."""

    def __init__(self, address: str, number: int, task: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OWN_CONNECTION)
        self._stub = pb_grpc.CoordinatorStub(self._channel)
        self._number = number
        self._task = task
        self._session = ""

    async def join(self, gate: asyncio.Semaphore) -> None:
        """Join, when the gate lets it."""
        async with gate:
            request = pb.JoinRequest(
                client_id=f"client-{self._number:05d}",
                instance_id="bench",
                task_names=[self._task],
                partition=self._number,
            )
            while not self._session:
                try:
                    response = await self._stub.Join(request, timeout=60, wait_for_ready=True)
                    self._session = response.session_token
                except grpc.aio.AioRpcError as error:
                    seconds = retry_delay(error)
                    if seconds is None:
                        raise
                    await asyncio.sleep(seconds)

    async def poll(self, updates: float = math.inf) -> None:
        """Take part until the run ends, or for so many updates."""
        poll = pb.PollTaskAssignmentRequest(session_token=self._session)
        while updates > 0:
            response = await self._stub.PollTaskAssignment(poll, timeout=_POLL_SECONDS)
            if response.HasField("run_end"):
                return
            if response.HasField("assignment"):
                await self._work(response.assignment)
                updates -= 1

    async def leave(self) -> None:
        """Say goodbye, and close the connection."""
        with suppress(grpc.aio.AioRpcError):  # The server goes without the last ones.
            await self._stub.Leave(pb.LeaveRequest(session_token=self._session))
        await self.vanish()

    async def vanish(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def _work(self, assignment: pb.TaskAssignment) -> None:
        request = pb.PullModelRequest(
            session_token=self._session, model_version=assignment.model.version
        )
        model = bytearray()
        async for message in self._stub.PullModel(request):
            model += message.chunk.data
        start = 8 + int.from_bytes(model[:8], "little")
        update = bytes(model[:start]) + bytes(len(model) - start)
        response = await self._stub.PushUpdate(_messages(self._session, assignment, update))
        if response.outcome not in _GOOD:
            sys.exit(f"client {self._number}: {response}")


def _messages(
    session: str, assignment: pb.TaskAssignment, update: bytes
) -> Iterator[pb.PushUpdateRequest]:
    digest = digest_bytes(update)
    header = pb.PushUpdateHeader(
        session_token=session,
        task_token=assignment.task_token,
        base_model=assignment.model,
        digest=pb.Digest(blake3=digest.blake3, size_bytes=digest.size_bytes),
        num_examples=1,
    )
    yield pb.PushUpdateRequest(header=header)
    for offset, data, last in pieces(memoryview(update)):
        chunk = pb.Chunk(offset=offset, data=bytes(data), finish_write=last)
        yield pb.PushUpdateRequest(chunk=chunk)


async def _main(address: str, first: int, count: int, task: str) -> None:
    clients = [Client(address, number, task) for number in range(first, first + count)]
    gate = asyncio.Semaphore(_JOINING_AT_ONCE)
    polls = []

    async def take_part(client: Client) -> None:
        await client.poll()
        await client.leave()

    async def begin(client: Client) -> None:
        await client.join(gate)
        polls.append(asyncio.create_task(take_part(client)))

    await asyncio.gather(*map(begin, clients))
    print("waiting", flush=True)
    await asyncio.gather(*polls)


if __name__ == "__main__":
    keep_chunks_allocated()
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
