"""The chaos run with one seed: all invariants hold, and nothing of it stays behind."""

import json
import signal
from pathlib import Path

from tests.e2e.harness import ROOT, interrupt, until


def _leftovers(process):
    """Return the folders of a chaos run, and the processes that it started."""
    folders = (ROOT / "runs").glob(f"chaos-{process.popen.pid}-*")
    return [*folders, *_children(process.popen.pid)]


def _children(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def test_all_invariants_hold_under_a_seeds_faults(federation):
    process = federation.start("scripts.resilience", "--seed", 1, "--small", "--json")
    assert process.wait(200) == 0, process.text
    result = json.loads(next(line for line in process.text.splitlines() if line.startswith("{")))
    assert (result["seed"], result["held"]) == (1, True)
    assert result["abandoned"] >= 1
    assert result["server_kills"] == 1
    assert result["client_kills"] + result["pauses"] + result["connection_faults"] >= 5
    assert _leftovers(process) == []


def test_ctrl_c_ends_all_processes_of_a_chaos_run(federation):
    process = federation.start("scripts.resilience", "--small")
    children = until(lambda: _children(process.popen.pid)[1:], "a server and a client")
    status, seconds = interrupt(process, signal.SIGINT)
    assert status == 130
    assert seconds < 5
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert _leftovers(process) == []


def test_wrong_input_to_the_chaos_run_is_refused_with_status_2(federation):
    process = federation.start("scripts.resilience", "--seeds", 0)
    assert process.wait() == 2
    assert len(process.errors) == 1
