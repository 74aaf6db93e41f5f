"""A traced round, as a collector gets it from a server in this process."""

import pytest

from common import tracing
from tests.collector import Collector
from tests.service.harness import LiveServer, update


@pytest.fixture
def collector(monkeypatch):
    """Traces of this process go there, until `tracing.shut_down` at the latest."""
    monkeypatch.setattr(tracing, "_recorder", None)
    with Collector() as found:
        tracing.configure(found.endpoint, "tested", run="mine")
        yield found
        tracing.shut_down()


def test_an_assignment_carries_its_rounds_span_and_each_update_is_validated_in_it(
    tmp_path, collector
):
    with LiveServer(tmp_path / "run", rounds=1) as server:
        good, bad = server.join("good"), server.join("bad", partition=1)
        work = good.assignment()
        good.push(work, update())
        bad.push(bad.assignment(), update(bias=None))
        server.ended()
    tracing.shut_down()
    spans = {
        span.name + span.attributes.get("folkmoot.client", ""): span for span in collector.spans
    }
    assert set(spans) == {"round", "validategood", "validatebad", "aggregate", "commit"}
    root = spans.pop("round")
    assert work.traceparent == f"00-{root.trace}-{root.id}-01"
    assert {(span.trace, span.parent) for span in spans.values()} == {(root.trace, root.id)}
    assert (root.attributes["folkmoot.accepted"], root.attributes["folkmoot.refused"]) == (1, 1)
    assert root.resource["folkmoot.run"] == "mine"
    # What an exception says stays here.
    assert spans["validatebad"].failed
    assert spans["validatebad"].attributes == {
        "folkmoot.client": "bad",
        "error.type": "TensorError",
    }


def test_an_abandoned_attempt_and_the_next_are_two_traces(tmp_path, collector):
    with LiveServer(tmp_path / "run", rounds=1) as server:
        clients = [server.join("a"), server.join("b", partition=1)]
        for client in clients:
            client.push(client.assignment(), b"rubbish")
        for client in clients:
            client.push(client.assignment(), update())
        server.ended()
    tracing.shut_down()
    roots = sorted((s for s in collector.spans if s.name == "round"), key=lambda span: span.began)
    assert [root.attributes["folkmoot.attempt"] for root in roots] == [1, 2]
    assert [root.attributes["folkmoot.outcome"] for root in roots] == ["abandoned", "committed"]
    assert roots[0].trace != roots[1].trace


def test_a_round_that_the_servers_end_interrupts_is_said_to_be(tmp_path, collector):
    with LiveServer(tmp_path / "run") as server:
        server.join("a")
        server.join("b", partition=1).assignment()
    tracing.shut_down()
    (root,) = collector.spans
    assert (root.name, root.attributes["folkmoot.outcome"]) == ("round", "interrupted")


def test_without_tracing_an_assignment_says_nothing_of_it(tmp_path):
    with LiveServer(tmp_path / "run") as server:
        client, _ = server.join("a"), server.join("b", partition=1)
        assert client.assignment().traceparent == ""


@pytest.mark.parametrize("parent", ["", "rubbish", "00-0-0-01", f"00-{'0' * 32}-{'0' * 16}-01"])
def test_a_parent_that_is_none_makes_no_span(collector, parent):
    assert tracing.span("train", parent) is tracing.OFF


def test_ids_do_not_depend_on_pythons_random_state(collector):
    import random

    def begin():
        random.seed(1)
        return tracing.trace("round").traceparent

    assert begin() != begin()
