"""The benchmarks' small forms: each figure is there, and none is far from what it was.

Ratios to a floor of the same run, twice as wide as what the full forms must reach: machines
are noisy, and other tests run beside these.
"""

import json

import pytest

from tests.e2e.harness import PATIENCE


@pytest.fixture
def bench(federation):
    def run(subject):
        process = federation.start("scripts.benchmarks", subject, "--small", "--json")
        assert process.wait(2 * PATIENCE) == 0, process.text
        lines = [line for line in process.text.splitlines() if line.startswith("{")]
        return {figure["name"]: figure for figure in map(json.loads, lines)}

    return run


def test_a_round_costs_little_more_than_moving_its_bytes(bench):
    figures = bench("round")
    # A round of a tenth of a second: what runs beside it weighs more on the clock than on the CPU.
    assert figures["round, CPU"]["ratio"] < 2 * 2.2
    assert figures["round"]["ratio"] < 4 * 2.5
    assert figures["round"].keys() == {
        *("name", "value", "unit", "floor", "ratio", "parameters", "clients")
    }


def test_aggregation_is_not_much_slower_than_reading(bench):
    assert bench("aggregate")["aggregate FedAvg"]["ratio"] > 0.5 / 2


def test_a_crowd_waits_in_little_memory_and_no_session_is_lost(bench):
    figures = bench("scale")
    assert figures["sessions lost"]["value"] == 0
    assert figures["memory of a waiting client"]["value"] < 2 * 60_000
    assert figures["round of a crowd"]["value"] < 2 * 5


def test_a_client_adds_little_to_training_and_nothing_to_the_bytes(bench):
    figures = bench("client")
    for model in ("cnn", "mlp"):
        assert figures[f"training steps, {model}"]["ratio"] > 0.95 / 2
    for way in ("up", "down"):
        assert 1 <= figures[f"bytes on the wire, {way}"]["ratio"] < 1.001


def test_help_comes_soon(bench):
    figures = bench("start")
    # Importing torch and gRPC, of which help needs neither.
    imports = figures["client, start to joined"]["floor"]
    for program in ("server", "client"):
        assert figures[f"{program} --help"]["value"] < imports / 2
    assert figures["client, start to joined"]["ratio"] < 2 * 3
