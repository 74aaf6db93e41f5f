"""A TCP relay that counts the bytes it passes on, framing and all."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_READ = 1 << 16


class Relay:
    """Listens on a free port; passes bytes on to a server and back."""

    def __init__(self, target: str) -> None:
        self.address = ""
        self.up = self.down = 0
        self._host, _, self._port = target.rpartition(":")

    async def serve(self, ready: threading.Event, ended: asyncio.Event) -> None:
        """Relay connections until `ended`."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await ended.wait()
        server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
        await asyncio.gather(
            self._pass(reader, far_writer, "up"), self._pass(far_reader, writer, "down")
        )

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(_READ):
                if way == "up":
                    self.up += len(data)
                else:
                    self.down += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()


@contextmanager
def relaying(target: str) -> Iterator[Relay]:
    """Relay to HOST:PORT, in a thread, for a while."""
    relay, ready = Relay(target), threading.Event()
    loop, ended = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(relay.serve(ready, ended),))
    thread.start()
    ready.wait()
    try:
        yield relay
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()
