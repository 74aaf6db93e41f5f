"""A model larger than any message travels, and the server's memory does not grow with clients.

Nor by more than README.md says with what strangers send.
"""

import ssl
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests import certs
from tests.http2 import Http2, unfinished

TASK = "tests.tasks:Large"
CLIENTS = 20
# Of README.md, for three connections.
STRANGERS_BYTES = 64_000_000
PUSH = "/federated.v1.Coordinator/PushUpdate"


def _anonymous_bytes(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def test_a_round_of_20_clients_takes_less_than_three_models_of_memory(federation):
    server = federation.server(
        *("--rounds", 1, "--min-clients", CLIENTS, "--num-partitions", CLIENTS),
        *("--partitioner", "iid", "--client-evaluate-every", 0),
        task=TASK,
        fresh=True,
    )
    size = len(federation.model)
    assert size > 64 * 2**20
    rest = _anonymous_bytes(server.popen.pid)
    peak = [rest]
    ended = threading.Event()

    def sample():
        while not ended.wait(0.005):
            try:
                peak.append(_anonymous_bytes(server.popen.pid))
            except (FileNotFoundError, ProcessLookupError, AssertionError):
                return

    sampler = threading.Thread(target=sample)
    sampler.start()
    clients = [
        federation.client(f"{first}-{first + 9}", task=TASK) for first in range(0, CLIENTS, 10)
    ]
    status = server.wait(180)
    ended.set()
    sampler.join()
    assert status == 0, server.text
    assert [client.wait() for client in clients] == [0] * len(clients)
    assert federation.rows[-1]["accepted"] == CLIENTS
    growth = (max(peak) - rest) / size
    assert growth < 3, f"{growth:.2f} models of {size / 2**20:.0f} MiB above rest"


@pytest.mark.parametrize("secure", [False, True])
def test_unfinished_messages_from_three_strangers_take_64_mb_and_others_are_served(
    federation, tmp_path, secure
):
    flags, context, credentials = [], None, None
    if secure:
        folder = certs.make(tmp_path / "certs", clients=1) / "server"
        flags = ["--tls-cert", folder / "cert.pem", "--tls-key", folder / "key.pem"]
        context = ssl.create_default_context(cafile=folder / "ca.pem")
        context.set_alpn_protocols(["h2"])
        credentials = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes())
    server = federation.server(*flags, fresh=True)
    pid = server.popen.pid
    address = federation.address
    channel = (
        grpc.secure_channel(address, credentials) if secure else grpc.insecure_channel(address)
    )
    with channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        check(health_pb2.HealthCheckRequest(), timeout=20)
        rest = _anonymous_bytes(pid)
        body, growth, served = unfinished(1 << 20), 0, 0
        connections = [Http2(address, context) for _ in range(3)]
        sent = [{} for _ in connections]
        until = time.monotonic() + 4
        while time.monotonic() < until:
            for index, connection in enumerate(connections):
                if connection.closed:
                    connection.close()
                    connections[index], sent[index] = Http2(address, context), {}
                    continue
                open_ = {s: n for s, n in sent[index].items() if s not in connection.ended}
                while len(open_) < 1000:
                    open_[connection.open(PUSH)] = 0
                for stream, at in open_.items():
                    open_[stream] += connection.send(stream, body[at:])
                sent[index] = open_
            # Called while the connection may be shut: it is one of a stranger, too.
            check(health_pb2.HealthCheckRequest(), timeout=20, wait_for_ready=True)
            served += 1
            growth = max(growth, _anonymous_bytes(pid) - rest)
        for connection in connections:
            connection.close()
    assert served > 1
    assert growth < STRANGERS_BYTES, f"{growth / 1e6:.0f} MB above rest"
