"""Servers and clients killed at their writes, as ./scripts/chaos kill-points does it."""

import json


def test_the_run_goes_on_from_each_point_as_if_undisturbed(federation):
    process = federation.start("scripts.resilience", "kill-points", "--every", "20", "--json")
    assert process.wait(200) == 0, process.text
    found = json.loads(next(line for line in process.text.splitlines() if line.startswith("{")))
    assert found["failures"] == 0
    chains = found["chains"]
    assert chains["one kill"] >= 15
    assert chains["killed again in recovery"] >= 45
    assert min(chains[name] for name in ("two kills", "cohort.json deleted")) >= 10
    assert chains["client, one kill"] >= 2
    kinds = {"fsync", "replace", "pwrite", "pwrite, half-way", "write", "write, half-way"}
    assert kinds <= found["kinds"].keys()
