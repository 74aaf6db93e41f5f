"""A strategy of the user's own, as real processes."""

import json
import re
import signal
import sys

import pytest

from common.algorithms import load_algorithm
from scripts.viewing.runs import open_run
from tests.e2e.harness import ROOT

GATED = "tests.tasks:Gated"
ROUNDS = 3
WHOLE = "tests.strategies:Whole"


@pytest.fixture(params=["README", WHOLE])
def own(request, tmp_path, monkeypatch):
    """Return what the processes need for an own strategy: the server's flags, the clients'."""
    if request.param == WHOLE:
        flags = ("--strategy", WHOLE, "--strategy-options", '{"pull": 0.2}')
        return flags, ("--strategy", WHOLE), {}
    text = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(# steady.py\n.*?)```", text, re.DOTALL).group(1)
    assert len(code.splitlines()) <= 25
    (tmp_path / "steady.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    flags = ("--strategy", "steady:Steady", "--strategy-options", '{"beta": 0.5}')
    return flags, (), {"PYTHONPATH": str(tmp_path), "fresh": True}


def started(federation, index, *flags):
    gate = federation.folder / f"gate-{index}"
    state = federation.folder / "state"
    client = federation.client(index, "--state-dir", state, *flags, task=GATED, GATE=str(gate))
    return client, gate


def record(federation):
    path = federation.run_dir / "rounds" / f"{ROUNDS:05d}" / "record.json"
    return json.loads(path.read_text())


def test_it_survives_a_kill_of_server_and_client_with_the_same_bytes_and_is_shown(
    own, federation, another_federation
):
    strategy, clients_flags, environment = own
    flags = ("--rounds", ROUNDS, "--min-clients", 2, "--num-partitions", 2, *strategy)
    undisturbed = another_federation.server(*flags, **environment)
    state = another_federation.folder / "state"
    another_federation.client("0-1", "--state-dir", state, *clients_flags)
    assert undisturbed.wait() == 0, undisturbed.text

    server = federation.server(*flags, task=GATED, **environment)
    first, gate = started(federation, 0, *clients_flags)
    second, other_gate = started(federation, 1, *clients_flags)
    gate.touch()
    other_gate.touch()
    federation.wait_for(lambda run: run.round.number >= 2)
    other_gate.unlink()
    server.signal(signal.SIGKILL)
    second.signal(signal.SIGKILL)
    server.wait()
    second.wait()
    resume = ("--resume", "--rounds", ROUNDS, *strategy[:2])
    server = federation.server(*resume, bind=federation.address, task=GATED, **environment)
    second, gate = started(federation, 1, *clients_flags)
    gate.touch()
    assert server.wait() == 0, server.text
    assert [first.wait(), second.wait()] == [0, 0], first.text + second.text
    assert federation.model == another_federation.model
    kept = record(federation)
    assert kept["notes"] == record(another_federation)["notes"] != {}
    assert kept["state"] == record(another_federation)["state"]

    shown = open_run(federation.run_dir)
    assert (shown.option("strategy"), len(shown.summary().rows)) == (strategy[1], ROUNDS)
    assert json.loads(shown.option("strategy_options")) == json.loads(strategy[3])


def test_code_that_nobody_has_named_here_is_not_run(federation):
    flags = ("--rounds", 1, "--num-partitions", 2, "--strategy", WHOLE)
    server = federation.server(*flags)
    told = federation.client("0-1")
    assert told.wait() == 2
    assert told.errors == [
        f"error: --strategy: the server runs '{WHOLE}', which this client was not started for; if "
        "you trust that code, start it with that --strategy"
    ]
    federation.client("0-1", "--strategy", WHOLE, "--state-dir", federation.folder / "state")
    assert server.wait() == 0, server.text
    resumed = federation.start(
        *("server", "--run-dir", federation.run_dir, "--task", "tests.tasks:Tiny"),
        *("--resume", "--rounds", 2),
    )
    assert resumed.wait() == 2
    assert resumed.errors == [
        f"error: the run's strategy is {WHOLE}, whose code would run here; if you trust it, add "
        f"--strategy {WHOLE}"
    ]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Failing", r"--strategy: KeyError: 'mine' \(.*tests/strategies.py, line \d+\)"),
        ("Hoarding", "--strategy: its notes are not JSON: .*set"),
    ],
)
def test_its_own_mistakes_end_the_run_with_one_line(federation, name, why):
    flags = ("--rounds", 1, "--num-partitions", 2, "--strategy", f"tests.strategies:{name}")
    server = federation.server(*flags)
    client = federation.client("0-1")
    assert server.wait() == 1
    (error,) = server.errors
    assert re.search(why, error)
    client.end()


def test_the_names_that_are_loaded_here_are_the_readmes(own):
    assert load_algorithm(own[0][1]).Options().server_lr == 1.0
    sys.modules.pop("steady", None)
