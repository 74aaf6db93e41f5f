"""Bad networks between real processes: connections cut, damaged, slow, doubled, silent."""

import time
from contextlib import ExitStack

import pytest

from scripts.testbed.proxy import proxying
from tests.e2e.harness import TASK, until

LARGE = "tests.tasks:Large"
STEPS = "scripts.resilience.tasks:Steps"
CHUNK = 1 << 20
# Of 72 MiB: messages, frames, and what a cut call says again.
FRAMING = 100_000


@pytest.fixture
def behind_proxies(federation):
    """Return a function that starts clients of the server, each behind a proxy of its own."""
    with ExitStack() as stack:

        def proxies(count):
            return [stack.enter_context(proxying(federation.address)) for _ in range(count)]

        yield proxies


def serve(federation, clients, task, *flags):
    return federation.server(
        *("--min-clients", clients, "--num-partitions", clients, "--partitioner", "iid"),
        *flags,
        task=task,
    )


def client_of(federation, proxy, partition, task):
    federation.address = proxy.address
    return federation.client(partition, task=task)


def test_a_large_model_arrives_over_cut_connections_and_a_cut_costs_at_most_a_chunk(
    federation, behind_proxies
):
    server = serve(federation, 1, LARGE, "--rounds", 1, "--client-evaluate-every", 0)
    size = len(federation.model)
    (proxy,) = behind_proxies(1)
    cuts = {"down": (7 * CHUNK, 30 * CHUNK + 1, 55 * CHUNK - 1), "up": (5 * CHUNK, 40 * CHUNK)}
    for way, places in cuts.items():
        for place in places:
            proxy.cut_after(way, place)
    client = client_of(federation, proxy, 0, LARGE)
    assert (server.wait(), client.wait()) == (0, 0), client.text
    assert (proxy.cut, proxy.made) == (5, 6)
    for way, places in cuts.items():
        assert 0 < proxy.passed[way] - size <= len(places) * CHUNK + FRAMING
    (row,) = federation.rows
    assert row["accepted"] == 1
    # Of each cut on the way down, the chunk that still waited in the server may count, too.
    assert 0 < row["bytes_resent"] <= (5 + len(cuts["down"])) * CHUNK


def test_damaged_reset_slow_and_doubled_connections_do_not_change_the_model(
    federation, another_federation, behind_proxies
):
    flags = ("--rounds", 2, "--report-goal", 2, "--quorum", 2)
    undisturbed = serve(another_federation, 2, STEPS, *flags)
    together = another_federation.client("0-1", task=STEPS)
    assert (undisturbed.wait(), together.wait()) == (0, 0), together.text

    server = serve(federation, 2, STEPS, *flags)
    damaged, doubled = proxies = behind_proxies(2)
    for proxy in proxies:
        proxy.delay, proxy.bandwidth = 0.03, 8 * CHUNK
    for way in ("up", "down"):
        # In the midst of a model of 4 MiB, far from the messages that have no digest.
        damaged.corrupt_after(way, 5 * CHUNK // 2)
    doubled.duplicate = 6 * CHUNK
    clients = [client_of(federation, proxy, i, STEPS) for i, proxy in enumerate(proxies)]
    until(lambda: damaged.passed["down"] > CHUNK, "the model to be pulled")
    assert damaged.reset() == 1
    assert server.wait() == 0, server.text
    assert [client.wait() for client in clients] == [0, 0], [client.text for client in clients]
    assert (damaged.corrupted, damaged.made, doubled.made) == (2, 2, 1)
    assert [row["accepted"] for row in federation.rows] == [2, 2]
    assert federation.model == another_federation.model


def test_a_silent_connection_is_replaced_and_a_load_balancers_idle_limit_is_not_met(
    federation, behind_proxies
):
    # Three are needed: these two wait.
    serve(federation, 3, TASK)
    silent, idle = behind_proxies(2)
    idle.idle_limit = 25.0
    for partition, proxy in enumerate((silent, idle)):
        client_of(federation, proxy, partition, TASK)
    federation.wait_for(lambda run: run.live_client_count == 2)
    assert silent.half_open() == 1
    began = time.monotonic()
    until(lambda: silent.made == 2, "a second connection")
    # 20 s until a ping, 10 s for its answer; then the time to connect.
    assert time.monotonic() - began < 32
    until(lambda: time.monotonic() - began > 27, "the idle limit to pass")
    assert (idle.made, idle.cut) == (1, 0)
