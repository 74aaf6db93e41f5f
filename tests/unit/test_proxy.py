"""The fault proxy does to a connection what it is told to, and counts what passes."""

import socket
import threading
import time
from contextlib import contextmanager

import pytest

from scripts.testbed.proxy import proxying

PATIENCE = 10.0


class Echo:
    """Sends back all it gets; remembers it, by connection."""

    def __init__(self):
        self.received = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            connection, _ = self._listener.accept()
            self.received.append(b"")
            number = len(self.received) - 1
            threading.Thread(target=self._echo, args=(connection, number), daemon=True).start()

    def _echo(self, connection, number):
        try:
            while data := connection.recv(1 << 16):
                self.received[number] += data
                connection.sendall(data)
        except OSError:
            pass
        connection.close()


@pytest.fixture
def echo():
    return Echo()


@pytest.fixture
def proxy(echo):
    with proxying(echo.address) as running:
        yield running


@contextmanager
def connected(proxy):
    host, _, port = proxy.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        yield connection


def answer(connection, data):
    connection.sendall(data)
    return receive(connection, len(data))


def receive(connection, count):
    """Return so many bytes, or fewer if the connection ends before."""
    received = b""
    while len(received) < count and (data := connection.recv(1 << 16)):
        received += data
    return received


def until(holds):
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_all_bytes_pass_and_are_counted_both_ways(proxy):
    payload = bytes(range(256)) * 4096
    with connected(proxy) as connection:
        sender = threading.Thread(target=connection.sendall, args=(payload,))
        sender.start()
        assert receive(connection, len(payload)) == payload
        sender.join()
    assert proxy.passed == {"up": len(payload), "down": len(payload)}
    assert (proxy.made, proxy.cut) == (1, 0)


def test_a_cut_lets_exactly_so_many_bytes_pass_and_the_next_connection_works(proxy):
    proxy.cut_after("down", 10)
    with connected(proxy) as connection:
        assert answer(connection, b"x" * 20) == b"x" * 10
    with connected(proxy) as connection:
        assert answer(connection, b"y" * 20) == b"y" * 20
    assert (proxy.made, proxy.cut, proxy.passed["down"]) == (2, 1, 30)


def test_a_cut_counts_from_when_it_is_set(proxy, echo):
    with connected(proxy) as connection:
        assert answer(connection, b"x" * 7) == b"x" * 7
        proxy.cut_after("up", 5)
        connection.sendall(b"abcdefgh")
        until(lambda: echo.received == [b"x" * 7 + b"abcde"])
    assert proxy.cut == 1


def test_one_byte_is_corrupted(proxy):
    proxy.corrupt_after("up", 3)
    with connected(proxy) as connection:
        received = answer(connection, b"abcdef")
        assert [a == b for a, b in zip(received, b"abcdef", strict=True)] == [
            *(True, True, True, False, True, True)
        ]
        assert answer(connection, b"abcdef") == b"abcdef"
    assert proxy.corrupted == 1


def test_a_reset_ends_all_connections(proxy):
    with connected(proxy) as one, connected(proxy) as other:
        assert (answer(one, b"a"), answer(other, b"b")) == (b"a", b"b")
        assert proxy.reset() == 2
        for connection in (one, other):
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
    assert proxy.live == 0


def test_a_half_open_connection_swallows_and_new_ones_work(proxy, echo):
    with connected(proxy) as old:
        assert answer(old, b"a") == b"a"
        assert proxy.half_open() == 1
        old.sendall(b"lost")
        with connected(proxy) as new:
            assert answer(new, b"b") == b"b"
        old.settimeout(0.1)
        with pytest.raises(TimeoutError):
            old.recv(1)
    assert echo.received == [b"a", b"b"]  # In the order of the connections.


def test_new_connections_are_refused(proxy):
    proxy.refusing = True
    with pytest.raises(ConnectionResetError), connected(proxy) as connection:
        connection.recv(1)
    proxy.calm()
    with connected(proxy) as connection:
        assert answer(connection, b"a") == b"a"


def test_a_server_that_is_not_there_resets_its_clients():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    with proxying(f"127.0.0.1:{free}") as proxy:
        with pytest.raises(ConnectionResetError), connected(proxy) as connection:
            connection.recv(1)
        assert proxy.made == 0


def test_a_duplicated_connection_takes_the_first_bytes_to_the_server_again(proxy, echo):
    proxy.duplicate = 4
    with connected(proxy) as connection:
        assert answer(connection, b"abc") == b"abc"
        assert answer(connection, b"def") == b"def"
        until(lambda: sorted(echo.received) == [b"abcd", b"abcdef"])


def test_delay_counts_each_way_and_bandwidth_limits(proxy):
    proxy.delay = 0.05
    with connected(proxy) as connection:
        began = time.monotonic()
        answer(connection, b"a")
        assert time.monotonic() - began >= 0.1
        proxy.calm()
        proxy.bandwidth = 1_000_000
        answer(connection, b"a")
        began = time.monotonic()
        answer(connection, b"x" * 100_000)
        answer(connection, b"x")
        assert time.monotonic() - began >= 0.1


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(proxy):
    proxy.idle_limit = 0.5
    with connected(proxy) as idle, connected(proxy) as busy:
        assert answer(idle, b"a") == b"a"
        until(lambda: answer(busy, b"b") and proxy.cut)
        assert idle.recv(1) == b""
        assert answer(busy, b"b") == b"b"
    assert proxy.cut == 1
