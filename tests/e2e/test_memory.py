"""A model larger than any message travels, and the server's memory does not grow with clients."""

import threading
from pathlib import Path

TASK = "tests.tasks:Large"
CLIENTS = 20


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
