"""Prometheus' port: what it says is the run's own figures, as Prometheus' own parser reads them."""

import json
import re
import socket
import ssl
from contextlib import closing
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from common.errors import InputError
from protos import federated_pb2 as pb
from server.auth.callers import open_doors
from server.options import SecurityOptions
from server.prometheus.http import MetricsPort
from tests import certs
from tests.e2e.harness import json_lines
from tests.service.harness import LiveServer, update

DASHBOARD = Path(__file__).parents[2] / "scripts" / "grafana.json"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def fetch(address, path="/metrics", context=None, **headers):
    """Return a response's status, content type and text; `context` is for TLS."""
    connection = HTTPConnection(address, timeout=10)
    if context is not None:
        connection = HTTPSConnection(address, timeout=10, context=context)
    with closing(connection):
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode()


def scrape(address):
    """Return the samples by name and labels: {"x_total": 1.0, "y{a=b}": 2.0}."""
    status, content_type, text = fetch(address, Accept=OPENMETRICS)
    assert (status, content_type.startswith(OPENMETRICS)) == (200, True)
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def play_round(server, good, bad):
    """Let one client push an update and evaluate the model, and the other push rubbish."""
    work = good.assignment()
    good.pull(work.model)
    good.push(work, update())
    bad.push(bad.assignment(), b"rubbish")
    metrics = {"accuracy": 0.5, "loss": 0.75, "f1": 0.25}
    report = pb.EvaluationReport(num_examples=10, metrics=metrics)
    good.report(good.assignment(), evaluation=report)


def test_a_scrape_says_what_metrics_jsonl_says(tmp_path):
    options = {"rounds": 3, "client_evaluate_every": 1, "metrics_port": 0}
    with LiveServer(tmp_path / "run", **options) as server:
        begun = scrape(server.metrics_address)
        assert begun["folkmoot_rounds_total{outcome=committed}"] == 0
        assert begun["folkmoot_round_phase{folkmoot_round_phase=selecting}"] == 1
        assert "folkmoot_model_loss{view=client_mean}" not in begun
        assert not any(name.startswith("folkmoot_model_metric") for name in begun)
        good, bad = server.join("good"), server.join("bad", partition=1)
        for number in (1, 2):
            play_round(server, good, bad)
            server.wait_for(lambda run, number=number: run.model.version == number)
        good.assignment()  # Of round 3, which has begun.
        found = scrape(server.metrics_address)
    assert found["folkmoot_model_metric{metric=f1,view=client_mean}"] == 0.25
    rows = json_lines(tmp_path / "run" / "metrics.jsonl")
    labels = "model=linear,run_id=run,strategy=fedavg,task=tests.tasks:Tiny,version=0.1.0"
    assert found[f"folkmoot_run_info{{{labels}}}"] == 1
    for name, value in {
        "rounds_total{outcome=committed}": 2,
        "rounds_total{outcome=abandoned}": 0,
        "updates_total{outcome=accepted}": 2,
        "updates_total{outcome=refused}": 2,
        "updates_total{outcome=dropped}": 0,
        "round": 3,
        "round_attempt": 1,
        "target_rounds": 3,
        "round_phase{folkmoot_round_phase=reporting}": 1,
        "round_phase{folkmoot_round_phase=selecting}": 0,
        "round_cohort_clients": 2,
        "round_wanted_updates": 2,
        "round_accepted_updates": 0,
        "sessions": 2,
        "sent_bytes_total": sum(row["bytes_down"] for row in rows),
        "received_bytes_total": sum(row["bytes_up"] for row in rows),
        "resent_bytes_total": 0,
        "model_accuracy_ratio{view=client_p10}": 0.5,
        "model_loss{view=client_mean}": 0.75,
        "model_loss{view=train}": rows[-1]["train_loss"],
        "round_duration_seconds_count": 2,
        "round_duration_seconds_bucket{le=+Inf}": 2,
    }.items():
        assert found[f"folkmoot_{name}"] == value, name
    for phase in ("collect", "aggregate", "evaluate", "commit"):
        count = found[f"folkmoot_phase_duration_seconds_count{{phase={phase}}}"]
        total = found[f"folkmoot_phase_duration_seconds_sum{{phase={phase}}}"]
        assert (count, total) == (2, pytest.approx(sum(row[f"{phase}_seconds"] for row in rows)))
    assert found["process_resident_memory_bytes"] > 1e6


def asked_for(dashboard):
    """Return what Grafana's dashboard queries: each metric with the labels that it relies on."""
    variables = dashboard["templating"]["list"]
    queries = [(v["query"]["query"], "") for v in variables if v["type"] == "query"]
    for panel in dashboard["panels"]:
        queries += [(target["expr"], target["legendFormat"]) for target in panel["targets"]]
    for query, legend in queries:
        labels = set(re.findall(r"{{(\w+)}}", legend))
        for listed in re.findall(r"by \(([\w, ]+)\)", query):
            labels |= set(listed.split(", "))
        for name, matched in re.findall(r"\b((?:folkmoot|process)_\w+){?([^}]*)}?", query):
            yield name, labels | set(re.findall(r"(\w+)=", matched))


def test_the_dashboard_asks_for_metrics_and_labels_that_are_there(tmp_path):
    options = {"client_evaluate_every": 1, "metrics_port": 0}
    with LiveServer(tmp_path / "run", **options) as server:
        play_round(server, server.join("good"), server.join("bad", partition=1))
        server.wait_for(lambda run: run.model.version == 1)
        families = text_string_to_metric_families(
            fetch(server.metrics_address, Accept=OPENMETRICS)[2]
        )
        samples = [sample for family in families for sample in family.samples]
    # Prometheus adds the instance.
    there = {sample.name: {"instance", *sample.labels} for sample in samples}
    asked = list(asked_for(json.loads(DASHBOARD.read_text())))
    assert len(asked) > 20
    for name, labels in asked:
        assert labels <= there.get(name, set()), name


def test_after_a_restart_counters_begin_again_and_gauges_go_on(tmp_path):
    options = {"client_evaluate_every": 1, "metrics_port": 0}
    with LiveServer(tmp_path / "run", **options) as server:
        play_round(server, server.join("good"), server.join("bad", partition=1))
        server.wait_for(lambda run: run.model.version == 1)
    with LiveServer(tmp_path / "run", resume=True, **options) as server:
        found = scrape(server.metrics_address)
    assert found["folkmoot_rounds_total{outcome=committed}"] == 0
    assert found["folkmoot_round_duration_seconds_count"] == 0
    assert found["folkmoot_round"] == 2
    assert found["folkmoot_model_loss{view=client_mean}"] == 0.75


def test_without_the_flag_there_is_no_port(tmp_path):
    with LiveServer(tmp_path / "run") as server:
        assert server.metrics_address is None


def test_other_paths_are_not_found_and_curl_gets_text(tmp_path):
    with LiveServer(tmp_path / "run", metrics_port=0) as server:
        status, _, text = fetch(server.metrics_address, "/")
        assert status == 404
        assert "the metrics are at /metrics" in text
        _, content_type, text = fetch(server.metrics_address)
    assert content_type.startswith("text/plain")
    assert "\nfolkmoot_round 1.0\n" in text


def test_a_port_in_use_is_refused_by_the_flags_name(tmp_path):
    with LiveServer(tmp_path / "run", metrics_port=0) as server:
        port = int(server.metrics_address.rpartition(":")[2])
        with pytest.raises(InputError, match=rf"^--metrics-port: .* 127.0.0.1:{port} .*in use"):
            LiveServer(tmp_path / "other", metrics_port=port).__enter__()
    assert not (tmp_path / "other").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CA that signed a server, an operator and a client."""
    return certs.make(tmp_path_factory.mktemp("certs") / "own", clients=1)


@pytest.fixture
def open_port(folder, monkeypatch):
    """Returns a function that serves one metric as to other machines; its address."""
    ports = []

    def serve(**options):
        server = folder / "server"
        security = SecurityOptions(
            tls_cert=server / "cert.pem", tls_key=server / "key.pem", **options
        )
        port = MetricsPort("127.0.0.1", 0, open_doors(security, "secret"), security)
        registry = CollectorRegistry()
        Gauge("one", "One.", registry=registry).set(1)
        port.serve(registry)
        ports.append(port)
        return port.address

    # A test's server listens on loopback alone.
    monkeypatch.setattr("server.prometheus.http.is_loopback", lambda _: False)
    yield serve
    for port in ports:
        port.close()


def tls(folder: Path, own: Path | None = None):
    context = ssl.create_default_context(cafile=folder / "server" / "ca.pem")
    if own is not None:
        context.load_cert_chain(own / "cert.pem", own / "key.pem")
    return context


def test_elsewhere_than_on_loopback_an_operator_shows_the_token(folder, open_port):
    address, context = open_port(), tls(folder)
    status, _, text = fetch(address, context=context, Authorization="Bearer secret")
    assert (status, text[-8:]) == (200, "one 1.0\n")
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        status, _, text = fetch(address, context=context, **headers)
        assert (status, "needs the operator token" in text) == (401, True)


def test_elsewhere_than_on_loopback_an_operator_shows_a_certificate(folder, open_port):
    address = open_port(tls_client_ca=folder / "server" / "ca.pem")
    operator = tls(folder, folder / "operator")
    assert fetch(address, context=operator)[0] == 200
    status, _, text = fetch(address, context=tls(folder, folder / "clients" / "client-0"))
    assert (status, "the certificate names no operator" in text) == (403, True)
    for context in (tls(folder), None):  # No certificate; plain text.
        with pytest.raises(OSError):  # noqa: PT011 - as the system words it
            fetch(address, context=context)
    assert fetch(address, context=operator)[0] == 200


def test_who_connects_and_says_nothing_keeps_nobody_waiting(folder, open_port):
    address = open_port()
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))):
        assert fetch(address, context=tls(folder), Authorization="Bearer secret")[0] == 200
