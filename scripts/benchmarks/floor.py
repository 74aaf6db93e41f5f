"""The floor under a round: the same bytes through a bare gRPC streaming service.

1 MiB chunks in the service's own messages; no hash, no disk, no check, no tensors.
`serve SIZE` prints its address; `take ADDRESS` pulls and pushes once a line of input.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator

import grpc

from common.process import keep_chunks_allocated
from protos import federated_pb2 as pb
from protos import federated_pb2_grpc as pb_grpc

_CHUNK = 1 << 20


class _Bare(pb_grpc.CoordinatorServicer):
    def __init__(self, size: int) -> None:
        self._model = os.urandom(min(size, _CHUNK)) * (size // _CHUNK + 1)
        self._size = size

    async def PullModel(
        self, request: pb.PullModelRequest, context: object
    ) -> AsyncIterator[pb.PullModelResponse]:
        view = memoryview(self._model)
        for start in range(0, self._size, _CHUNK):
            data = bytes(view[start : min(start + _CHUNK, self._size)])
            yield pb.PullModelResponse(chunk=pb.Chunk(offset=start, data=data))

    async def PushUpdate(
        self, request_iterator: AsyncIterator[pb.PushUpdateRequest], context: object
    ) -> pb.PushUpdateResponse:
        async for _ in request_iterator:
            pass
        return pb.PushUpdateResponse()


async def _serve(size: int) -> None:
    server = grpc.aio.server()
    servicer = _Bare(size)  # type: ignore[abstract]  # the other methods are not called
    pb_grpc.add_CoordinatorServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


def _take(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.CoordinatorStub(channel)
        grpc.channel_ready_future(channel).result(30)
        print("ready", flush=True)
        for _ in sys.stdin:
            held = [response.chunk.data for response in stub.PullModel(pb.PullModelRequest())]
            stub.PushUpdate(_messages(held))
            print("done", flush=True)


def _messages(held: list[bytes]) -> Iterator[pb.PushUpdateRequest]:
    offset = 0
    for data in held:
        yield pb.PushUpdateRequest(chunk=pb.Chunk(offset=offset, data=data))
        offset += len(data)


if __name__ == "__main__":
    keep_chunks_allocated()
    if sys.argv[1] == "serve":
        asyncio.run(_serve(int(sys.argv[2])))
    else:
        _take(sys.argv[2])
