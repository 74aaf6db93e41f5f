"""A server killed at its writes, as ./scripts/chaos kill-points does it."""

import json


def test_the_run_goes_on_from_each_point_as_if_undisturbed(federation):
    process = federation.start("scripts.resilience", "kill-points", "--every", "9", "--json")
    assert process.wait() == 0, process.text
    found = json.loads(process.text)
    assert found["failures"] == 0
    assert found["points"] >= 20
    assert {"fsync", "replace", "pwrite", "pwrite, half-way"} <= found["kinds"].keys()
