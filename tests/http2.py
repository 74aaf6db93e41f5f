"""A client of a few HTTP/2 frames (RFC 9113): it can leave messages unfinished."""

import select
import socket
import struct
from collections import defaultdict

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_HEADERS, _ACK = 4, 1
_INITIAL_WINDOW_SIZE = 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME = 16_384


def _frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(name, value):
    # HPACK, RFC 7541, 6.2.2: without indexing, a new name; short enough for one byte of length.
    return b"".join((b"\0", bytes([len(name)]), name, bytes([len(value)]), value))


class Http2:
    """One connection; `tls` is an ssl.SSLContext. It sends no more than the server lets it."""

    def __init__(self, address, tls=None):
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname=host)
        self.socket.settimeout(10)
        self.closed = False
        self.sent = 0
        self.ended = set()
        self._next = 1
        self._initial = self._window = 65_535
        self._windows = defaultdict(int)
        self._read = bytearray()
        self._send(_PREFACE + _frame(_SETTINGS, 0, 0))

    def open(self, method, metadata=()):
        """Return the number of a new stream, whose headers were sent."""
        fields = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", method.encode()),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            *metadata,
        ]
        stream, self._next = self._next, self._next + 2
        block = b"".join(_literal(name, value) for name, value in fields)
        self._send(_frame(_HEADERS, _END_HEADERS, stream, block))
        self._windows[stream] = self._initial
        return stream

    def send(self, stream, data, frame=_FRAME):
        """Send as much of `data` as the windows allow; return how much that was."""
        self.receive()
        size = 0 if stream in self.ended else min(len(data), self._windows[stream], self._window)
        frames = [
            _frame(_DATA, 0, stream, data[at : min(at + frame, size)])
            for at in range(0, size, frame)
        ]
        self._send(b"".join(frames))
        self._windows[stream] -= size
        self._window -= size
        self.sent += size
        return size

    def receive(self, seconds=0.0):
        """Learn what the server has said, waiting so long for it to say something."""
        while not self.closed:
            pending = getattr(self.socket, "pending", lambda: 0)()
            if not pending and not select.select([self.socket], [], [], seconds)[0]:
                return
            seconds = 0.0
            try:
                data = self.socket.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                self.closed = True
                return
            self._read += data
            self._take_frames()

    def close(self):
        self.socket.close()

    def _take_frames(self):
        while len(self._read) >= 9:
            size = int.from_bytes(self._read[:3])
            if len(self._read) < 9 + size:
                return
            kind, flags, stream = struct.unpack(">BBI", self._read[3:9])
            payload = bytes(self._read[9 : 9 + size])
            del self._read[: 9 + size]
            if kind == _WINDOW_UPDATE:
                self._widen(stream, int.from_bytes(payload))
            elif kind == _SETTINGS and not flags & _ACK:
                for at in range(0, size, 6):
                    name, value = struct.unpack(">HI", payload[at : at + 6])
                    if name == _INITIAL_WINDOW_SIZE:
                        for open_ in self._windows:
                            self._windows[open_] += value - self._initial
                        self._initial = value
                self._send(_frame(_SETTINGS, _ACK, 0))
            elif kind == _PING and not flags & _ACK:
                self._send(_frame(_PING, _ACK, 0, payload))
            elif kind == _RST_STREAM or (kind == _HEADERS and flags & 1):
                self.ended.add(stream)

    def _widen(self, stream, by):
        if stream:
            self._windows[stream] += by
        else:
            self._window += by

    def _send(self, data):
        if self.closed:
            return
        try:
            self.socket.sendall(data)
        except OSError:
            self.closed = True


def unfinished(size):
    """Return the beginning of a message of `size` bytes that lacks its last one."""
    return b"\0" + struct.pack(">I", size) + bytes(size - 1)
