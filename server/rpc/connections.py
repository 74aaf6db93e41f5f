"""Closes connections that nobody vouches for: too old, too many, or too much sent.

gRPC closes no connection at a server's wish, so this looks for their sockets among the process's
own descriptors. Knows nothing about sessions: it is told whose connections to leave alone.
"""

import asyncio
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import unquote

from server.run.limits import MAX_STRANGERS, STRANGER_BYTES, STRANGER_SECONDS

_SWEEP_SECONDS = 0.5
# Where struct tcp_info of Linux has tcpi_bytes_received.
_BYTES_RECEIVED = 128


class Peer(NamedTuple):
    """The far end of a connection."""

    host: str
    port: int


class _Socket(NamedTuple):
    """A descriptor, and the inode that tells it from a later one of the same number."""

    descriptor: int
    inode: int


class Stranger(NamedTuple):
    """A connection that nobody vouches for: when it was seen first, and what it has sent."""

    since: float
    received_bytes: int


def overdue(strangers: Mapping[_Socket, Stranger], now: float) -> list[_Socket]:
    """Return the connections to close.

    >>> one, two = _Socket(5, 1), _Socket(6, 2)
    >>> overdue({one: Stranger(0.0, 10), two: Stranger(15.0, STRANGER_BYTES + 1)}, 19.0) == [two]
    True
    """
    ordered = sorted(strangers, key=lambda key: strangers[key].since)
    too_many = set(ordered[: max(0, len(ordered) - MAX_STRANGERS)])
    return [
        key
        for key in ordered
        if key in too_many
        or now - strangers[key].since > STRANGER_SECONDS
        or strangers[key].received_bytes > STRANGER_BYTES
    ]


class Connections:
    """The connections to some ports of this process."""

    def __init__(self) -> None:
        self._ports: frozenset[int] = frozenset()
        self._known: set[Peer] = set()
        # Sockets by when they were seen first; None: not a connection to one of the ports.
        self._seen: dict[_Socket, tuple[Peer | None, float]] = {}

    def know(self, peer: str) -> None:
        """Leave a connection alone from now on; `peer` is what gRPC calls its far end."""
        self._known.add(peer_of(peer))

    async def watch(self, *addresses: str) -> None:
        """Close what is overdue, until cancelled.

        Args:
            addresses: of the ports, HOST:PORT.
        """
        self._ports = frozenset(int(address.rpartition(":")[2]) for address in addresses)
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            await asyncio.to_thread(self._sweep, time.monotonic())

    def _sweep(self, now: float) -> None:
        known = self._known.copy()
        self._seen = {
            key: self._seen.get(key) or (_peer_of_descriptor(key.descriptor, self._ports), now)
            for key in _sockets()
        }
        self._known -= known - {peer for peer, _ in self._seen.values() if peer is not None}
        strangers = {
            key: Stranger(since, _received_bytes(key.descriptor))
            for key, (peer, since) in self._seen.items()
            if peer is not None and peer not in self._known
        }
        for key in overdue(strangers, now):
            _shut_down(key.descriptor, self._seen[key][0])


def peer_of(text: str) -> Peer:
    """Return the peer that gRPC names.

    >>> peer_of("ipv4:192.0.2.1:5000"), peer_of("ipv6:%5B::1%5D:5000")
    (Peer(host='192.0.2.1', port=5000), Peer(host='::1', port=5000))
    """
    host, _, port = unquote(text).partition(":")[2].rpartition(":")
    return _peer(host.strip("[]"), int(port))


def _peer(host: str, port: int) -> Peer:
    # Without an IPv6 zone, and without what IPv6 writes before an address of IPv4.
    return Peer(host.partition("%")[0].removeprefix("::ffff:"), port)


def _sockets() -> list[_Socket]:
    found = []
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - numbers, not paths
        with suppress(OSError):  # Closed meanwhile.
            status = os.fstat(int(name))
            if stat.S_ISSOCK(status.st_mode):
                found.append(_Socket(int(name), status.st_ino))
    return found


def _peer_of_descriptor(descriptor: int, ports: frozenset[int]) -> Peer | None:
    try:
        # Of a duplicate, which stays the same socket if gRPC closes its own meanwhile.
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            if connection.family not in (socket.AF_INET, socket.AF_INET6):
                return None
            if connection.getsockname()[1] not in ports:
                return None
            return _peer(*connection.getpeername()[:2])
    except OSError:  # One that listens, or is closed meanwhile.
        return None


def _received_bytes(descriptor: int) -> int:
    if sys.platform != "linux":
        return 0
    try:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:
        return 0
    return int(struct.unpack_from("Q", info, _BYTES_RECEIVED)[0])


def _shut_down(descriptor: int, peer: Peer | None) -> None:
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
        if _peer(*connection.getpeername()[:2]) == peer:
            connection.shutdown(socket.SHUT_RDWR)
