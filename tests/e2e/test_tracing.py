"""Traces of rounds across real processes, as a collector gets them."""

import socket
from collections import Counter

import pytest

from tests.collector import Collector
from tests.e2e.harness import interrupt

pytestmark = pytest.mark.full

FLAGS = ("--num-partitions", 3, "--min-clients", 3, "--partitioner", "iid")


def test_each_round_is_one_trace_of_the_server_and_all_clients(federation):
    with Collector() as collector:
        traced = ("--otlp-endpoint", collector.endpoint)
        processes = [
            federation.server("--rounds", 2, *FLAGS, *traced),
            federation.client("0-1", *traced),
            federation.client("2", "--client-id", "ward", *traced),
        ]
        assert [process.wait() for process in processes] == [0, 0, 0]
    roots = [span for span in collector.spans if not span.parent]
    assert [root.name for root in roots] == ["round", "round"]
    clients = ["client-0", "client-1", "ward"]
    for number, root in enumerate(sorted(roots, key=lambda root: root.began), start=1):
        spans = [span for span in collector.spans if span.trace == root.trace]
        assert {span.parent for span in spans if span is not root} == {root.id}
        assert not any(span.failed for span in spans)
        assert root.attributes == {
            "folkmoot.run": "run",
            "folkmoot.round": number,
            "folkmoot.attempt": 1,
            "folkmoot.cohort": 3,
            "folkmoot.goal": 3,
            "folkmoot.outcome": "committed",
            "folkmoot.accepted": 3,
            "folkmoot.refused": 0,
            "folkmoot.dropped": 0,
        }
        assert Counter((span.service, span.name) for span in spans) == {
            ("folkmoot-server", "round"): 1,
            ("folkmoot-server", "validate"): 3,
            ("folkmoot-server", "aggregate"): 1,
            ("folkmoot-server", "evaluate"): 1,
            ("folkmoot-server", "commit"): 1,
            # Once to train, and once to evaluate.
            ("folkmoot-client", "pull"): 6,
            ("folkmoot-client", "train"): 3,
            ("folkmoot-client", "push"): 3,
            ("folkmoot-client", "evaluate"): 3,
        }
        for name in ("train", "push", "validate"):
            own = [span.attributes["folkmoot.client"] for span in spans if span.name == name]
            assert sorted(own) == clients
        for span in spans:
            # Of one machine's clock; the last evaluation ends with the round.
            assert root.began <= span.began <= span.ended
    resources = {
        tuple(s.resource["folkmoot.clients"]) for s in collector.spans if "client" in s.service
    }
    assert resources == {("client-0", "client-1"), ("ward",)}


def test_quickstart_traces_its_clients_too(federation):
    with Collector() as collector:
        flags = ("--rounds", 1, "--num-partitions", 2, "--otlp-endpoint", collector.endpoint)
        quickstart = federation.start("scripts.quickstart", "--run-dir", federation.run_dir, *flags)
        assert quickstart.wait(200) == 0, quickstart.text
    assert len({span.trace for span in collector.spans}) == 1
    assert Counter(span.name for span in collector.spans)["train"] == 2


@pytest.mark.parametrize("accepts", [False, True], ids=["refuses", "says nothing"])
def test_a_collector_that_is_down_costs_two_seconds_at_the_end(federation, accepts):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        traced = ("--otlp-endpoint", f"http://127.0.0.1:{listening.getsockname()[1]}")
        if not accepts:
            listening.close()
        # In milliseconds; otherwise nothing would be sent before the end.
        often = {"OTEL_BSP_SCHEDULE_DELAY": "10"}
        server = federation.server("--rounds", 1000, *FLAGS, *traced, **often)
        client = federation.client("0-2", *traced, **often)
        federation.wait_for(lambda run: run.model.version >= 3)
        for process in (client, server):
            status, seconds = interrupt(process)
            assert (status, seconds < 8) == (143, True)
            assert len(process.events("traces get lost")) in ((0, 1) if accepts else (1,))
            strange = [line for line in process.text.splitlines() if not line.startswith("{")]
            assert strange == []


def test_the_model_is_the_same_with_and_without_traces(federation, another_federation):
    with Collector() as collector:
        for place, traced in (
            (federation, ("--otlp-endpoint", collector.endpoint)),
            (another_federation, ()),
        ):
            server = place.server("--rounds", 2, *FLAGS, *traced)
            client = place.client("0-2", *traced)
            assert (server.wait(), client.wait()) == (0, 0)
    assert federation.model == another_federation.model
