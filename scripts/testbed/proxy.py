"""A TCP proxy that counts the bytes it passes on, framing and all, and has faults on demand.

Its faults may be set from any thread while it runs. Knows nothing about what passes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal, TypeVar

R = TypeVar("R")
Way = Literal["up", "down"]
Strike = Literal["cut", "corrupt"]
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_READ = 1 << 16
# What may wait in one direction of a delayed connection: as much as a long line holds.
_WAITING_READS = 256
_LOOK_SECONDS = 0.1
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Link:
    """A connection of a client and its counterpart to the server."""

    near: Stream
    far: Stream
    last: float
    twin: Stream | None = None
    # Bytes that still go to the twin.
    copied: int = 0
    swallowing: bool = False
    # The sides that ended while it swallowed that.
    swallowed_ends: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class _Armed:
    """A fault that waits until `left` more bytes have passed."""

    kind: Strike
    left: int


class Proxy:
    """Listens on a free port of 127.0.0.1; passes bytes on to a server and back.

    Attributes:
        address: HOST:PORT for clients.
        passed: the bytes passed on, up to the server and down to clients.
        made, cut, corrupted: connections made and cut short here, and bytes changed.
        delay: seconds that everything takes more, each way.
        bandwidth: bytes a second, each way of each connection; None: no limit.
        idle_limit: seconds without a byte after which a connection is closed; None: never.
        duplicate: bytes of each new connection that a second one takes to the server, too.
        refusing: whether new connections are reset at once.
    """

    def __init__(self, target: str) -> None:
        self.address = ""
        self.passed: dict[Way, int] = {"up": 0, "down": 0}
        self.made = self.cut = self.corrupted = 0
        self.delay = 0.0
        self.bandwidth: float | None = None
        self.idle_limit: float | None = None
        self.duplicate = 0
        self.refusing = False
        self._host, _, self._port = target.rpartition(":")
        self._loop = asyncio.new_event_loop()
        self._links: set[_Link] = set()
        self._armed: dict[Way, list[_Armed]] = {"up": [], "down": []}

    # ------------------------------------------------------------------- faults

    @property
    def live(self) -> int:
        """Return the connections over which bytes pass now."""
        return self._do(lambda: sum(not link.swallowing for link in self._links))

    def cut_after(self, way: Way, count: int) -> None:
        """Close the connection over which the next byte after `count` more would pass."""
        self._do(lambda: self._armed[way].append(_Armed("cut", count)))

    def corrupt_after(self, way: Way, count: int) -> None:
        """Change the next byte after `count` more."""
        self._do(lambda: self._armed[way].append(_Armed("corrupt", count)))

    def reset(self) -> int:
        """End all connections by RST, both ways; return how many."""
        return self._do(self._reset)

    def half_open(self) -> int:
        """Swallow all that comes over the connections of now, and their ends; return how many."""
        return self._do(self._half_open)

    def calm(self) -> list[Strike]:
        """Forget all faults, but not what they have done; return those that still waited."""
        self.delay, self.bandwidth, self.idle_limit = 0.0, None, None
        self.duplicate, self.refusing = 0, False
        return self._do(self._disarm)

    def _do(self, action: Callable[[], R]) -> R:
        """Run an action among the proxy's own."""

        async def run() -> R:
            return action()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _reset(self) -> int:
        links = list(self._links)
        for link in links:
            _reset(link.near)
            _reset(link.far)
            self._cut(link)
        return len(links)

    def _disarm(self) -> list[Strike]:
        waiting = [armed.kind for way in self._armed.values() for armed in way]
        for way in self._armed.values():
            way.clear()
        return waiting

    def _half_open(self) -> int:
        links = [link for link in self._links if not link.swallowing]
        for link in links:
            link.swallowing = True
        return len(links)

    def _cut(self, link: _Link) -> None:
        self.cut += 1
        self._close(link)

    def _close(self, link: _Link) -> None:
        """Close both sides, after what they were given."""
        self._links.discard(link)
        link.gone.set()
        for stream in filter(None, (link.near, link.far, link.twin)):
            stream[1].close()

    # ------------------------------------------------------------------ passing

    def run(self, ready: threading.Event, ended: asyncio.Event) -> None:
        """Serve in this thread until `ended`."""
        self._loop.run_until_complete(self._serve(ready, ended))
        self._loop.close()

    def end(self, ended: asyncio.Event) -> None:
        """Set `ended`, from another thread."""
        self._loop.call_soon_threadsafe(ended.set)

    async def _serve(self, ready: threading.Event, ended: asyncio.Event) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        while not ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _LOOK_SECONDS)
            self._close_idle()
        server.close()
        for link in list(self._links):
            self._close(link)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=1.0)

    def _close_idle(self) -> None:
        limit, now = self.idle_limit, self._loop.time()
        for link in list(self._links):
            if limit is not None and now - link.last > limit:
                self._cut(link)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near = reader, writer
        try:
            if self.refusing:
                raise ConnectionRefusedError
            far = await asyncio.open_connection(self._host, int(self._port))
            twin = None
            if self.duplicate:
                twin = await asyncio.open_connection(self._host, int(self._port))
        except OSError:
            _reset(near)
            return
        for stream in (near, far):
            # What waits in the system is lost at a cut, although it counts as passed.
            connection: socket.socket = stream[1].get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _READ)
        link = _Link(near, far, self._loop.time(), twin, self.duplicate)
        self._links.add(link)
        self.made += 1
        tasks = [
            asyncio.create_task(self._pass(link, "up", reader, far[1])),
            asyncio.create_task(self._pass(link, "down", far[0], writer)),
        ]
        if twin is not None:
            tasks.append(asyncio.create_task(_discard(twin[0])))
        await link.gone.wait()
        for task in tasks:
            task.cancel()

    async def _pass(
        self, link: _Link, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Pass on one direction until either side ends; then end the link."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WAITING_READS)
        reading = asyncio.create_task(self._read(reader, waiting))
        try:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(due - self._loop.time())
                if link.swallowing:
                    link.swallowed_ends += not data
                    if link.swallowed_ends == 2:
                        break
                elif not data:
                    break
                else:
                    link.last = self._loop.time()
                    await self._write(link, way, data, writer)
        except OSError:
            pass
        finally:
            reading.cancel()
        self._close(link)

    async def _read(
        self, reader: asyncio.StreamReader, waiting: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        data = b"."
        while data:
            try:
                data = await reader.read(_READ)
            except OSError:
                data = b""
            await waiting.put((self._loop.time() + self.delay, data))
            if self.bandwidth is not None:
                await asyncio.sleep(len(data) / self.bandwidth)

    async def _write(
        self, link: _Link, way: Way, data: bytes, writer: asyncio.StreamWriter
    ) -> None:
        """Pass on, with the faults that are due."""
        data, cut = self._strike(way, data)
        self.passed[way] += len(data)
        writer.write(data)
        if way == "up" and link.twin is not None and link.copied:
            link.twin[1].write(data[: link.copied])
            link.copied = max(0, link.copied - len(data))
        if cut:
            self._cut(link)
        else:
            await writer.drain()

    def _strike(self, way: Way, data: bytes) -> tuple[bytes, bool]:
        """Return what is left of data after the faults that wait, and whether to cut there."""
        for armed in list(self._armed[way]):
            if armed.left >= len(data):
                continue
            self._armed[way].remove(armed)
            if armed.kind == "cut":
                data = data[: armed.left]
                self._count_down(way, len(data))
                return data, True
            changed = bytes([data[armed.left] ^ 0x55])
            data = data[: armed.left] + changed + data[armed.left + 1 :]
            self.corrupted += 1
        self._count_down(way, len(data))
        return data, False

    def _count_down(self, way: Way, count: int) -> None:
        for armed in self._armed[way]:
            armed.left = max(0, armed.left - count)


def _reset(stream: Stream) -> None:
    connection: socket.socket = stream[1].get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    stream[1].transport.abort()


async def _discard(reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        while await reader.read(_READ):
            pass


@contextmanager
def proxying(target: str) -> Iterator[Proxy]:
    """Run a proxy to HOST:PORT, in a thread, for a while."""
    proxy, ready, ended = Proxy(target), threading.Event(), asyncio.Event()
    thread = threading.Thread(target=proxy.run, args=(ready, ended), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield proxy
    finally:
        proxy.end(ended)
        thread.join()
