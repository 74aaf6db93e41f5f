"""A server takes malformed calls by the thousand, and is afterwards as it was."""

import json

from tests.e2e.harness import PATIENCE


def test_malformed_calls_end_as_documented_and_leave_no_trace(federation):
    flags = ("--messages", 1500, "--seed", 7, "--json")
    process = federation.start("scripts.resilience", "fuzz", *flags)
    assert process.wait(2 * PATIENCE) == 0, process.text
    lines = [json.loads(line) for line in process.text.splitlines() if line.startswith("{")]
    methods = {line["method"] for line in lines[:-1]}
    assert {"Join", "PollTaskAssignment", "PullModel", "PushUpdate", "StopRun"} < methods
    outcomes = {line["outcome"] for line in lines if line.get("method") == "PushUpdate"}
    # Deep enough to reach the files, the digest and the offsets.
    assert {"OK OUTCOME_INVALID", "OK OUTCOME_OFFSET_MISMATCH", "OK OUTCOME_ACCEPTED"} < outcomes
    assert lines[-1]["calls"] >= 1500


def test_valid_calls_at_the_wrong_moment_change_no_model_and_end_no_server(federation):
    process = federation.start("scripts.resilience", "fuzz-timing", "--seconds", 10, "--json")
    assert process.wait(3 * PATIENCE) == 0, process.text
    figures = json.loads(process.text.splitlines()[-1])
    assert figures["failures"] == 0
    assert min(figures[name] for name in ("committed", "superseded")) >= 1
