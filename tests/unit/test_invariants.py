"""Each invariant of the chaos run holds for a good run, and sees what is wrong with a bad one."""

import pytest

from scripts.resilience.invariants import (
    Level,
    acknowledged_kept,
    counted_once,
    ended_well,
    enough,
    no_bugs,
    no_orphans,
    recomputed_models,
    rounds_grow_by_one,
    same_models,
    server_settled,
)

NAMES = ("a", "b")
METRICS = [{"round": 1, "model_blake3": "x"}, {"round": 2, "model_blake3": "y"}]
CLIENTS = [
    {"round": number, "client_id": name, "outcome": "accepted"}
    for number in (1, 2)
    for name in NAMES
]
COMMITS = [{"event": "round committed", "round": 1}, {"event": "round committed", "round": 2}]
STARTED = {"event": "client started"}


def pushed(number, outcome="ACCEPTED"):
    return {"event": "pushed", "round": number, "outcome": outcome}


CLIENT_LOGS = {name: [STARTED, pushed(1), pushed(2)] for name in NAMES}


@pytest.mark.parametrize(
    ("metrics", "log"),
    [
        (METRICS[:1], COMMITS),
        (METRICS[::-1], COMMITS),
        ([*METRICS, METRICS[1]], COMMITS),
        (METRICS, [*COMMITS, COMMITS[0]]),
    ],
)
def test_a_round_that_is_lost_repeated_or_out_of_order_is_seen(metrics, log):
    assert rounds_grow_by_one(METRICS, COMMITS, 2) == []
    assert rounds_grow_by_one(metrics, log, 2)


@pytest.mark.parametrize(
    "clients",
    [
        CLIENTS[1:],
        [*CLIENTS, CLIENTS[0]],
        [*CLIENTS, {**CLIENTS[0], "round": 3}],
        [{**CLIENTS[0], "outcome": "dropped"}, *CLIENTS[1:]],
    ],
)
def test_an_update_that_is_not_counted_exactly_once_is_seen(clients):
    assert counted_once(CLIENTS, NAMES, 2, 2) == []
    assert counted_once(clients, NAMES, 2, 2)


def test_an_acknowledged_update_that_is_lost_is_seen():
    assert acknowledged_kept(CLIENTS, COMMITS, CLIENT_LOGS) == []
    assert acknowledged_kept(CLIENTS[1:], COMMITS, CLIENT_LOGS) == [
        "a's acknowledged update of round 1 is lost"
    ]


def test_a_second_acknowledgement_needs_an_abandoned_attempt():
    logs = {"a": [STARTED, pushed(1), pushed(1), pushed(2)]}
    assert acknowledged_kept(CLIENTS, COMMITS, logs) == ["a had to push 2 times in round 1"]
    abandoned = [
        *COMMITS,
        {"event": "update accepted", "round": 1, "attempt": 1, "client": "a"},
        {"event": "round abandoned", "round": 1, "attempt": 1},
    ]
    assert acknowledged_kept(CLIENTS, abandoned, logs) == []
    # Of another client's update, it is no excuse.
    logs["b"] = logs.pop("a")
    assert acknowledged_kept(CLIENTS, abandoned, logs) == ["b had to push 2 times in round 1"]


def test_a_round_may_lack_updates_but_not_a_quorum():
    late = [{**CLIENTS[0], "outcome": "dropped"}, *CLIENTS[1:]]
    assert counted_once(late, NAMES, 2, 1) == []
    assert counted_once(late, NAMES, 2, 2) == ["round 1 was committed with 1 updates"]


def test_a_model_of_other_updates_is_seen():
    assert recomputed_models(METRICS, ["x", "y"]) == []
    assert recomputed_models(METRICS, ["x", "z"]) == [
        "round 2: the model is not that of the updates that were counted"
    ]


def test_a_bug_in_the_log_is_seen():
    assert no_bugs(["all is well"]) == []
    assert len(no_bugs(["all is well", "bug in a call", "Traceback"])) == 1


@pytest.mark.parametrize(
    "interruption",
    ["client started", "session lost; joining again", "work is not wanted any more"],
)
def test_an_update_without_acknowledgement_needs_an_interruption(interruption):
    logs = {"a": [STARTED, pushed(1), pushed(2, "NOT_WANTED")]}
    assert acknowledged_kept(CLIENTS, COMMITS, logs) == [
        "a lacks 1 acknowledgements, interrupted 0 times"
    ]
    logs["a"].append({"event": interruption})
    assert acknowledged_kept(CLIENTS, COMMITS, logs) == []


def test_another_model_is_seen():
    assert same_models(METRICS, METRICS) == []
    assert same_models([METRICS[0], {**METRICS[1], "model_blake3": "z"}], METRICS) == [
        "round 2 ended with another model"
    ]


@pytest.mark.parametrize("after", [Level(122, 10, 5), Level(100, 14, 5), Level(100, 10, 10), None])
def test_a_server_that_grew_is_seen(after):
    before = Level(100, 10, 5)
    assert server_settled(before, Level(120, 13, 9)) == []
    assert len(server_settled(before, after)) == 1


@pytest.mark.parametrize(
    "orphan",
    [
        "server.json",
        "config.json.tmp",
        "models/best.safetensors.tmp",
        "rounds/spare/0a.safetensors",
        "rounds/00005/updates/0a.safetensors",
        "rounds/00005/updates/0a.json",
        "rounds/00002/record.json",
        "rounds/00002/model.safetensors",
    ],
)
def test_a_file_that_is_left_behind_is_seen(orphan):
    files = [
        *("config.json", "server.jsonl", "metrics.jsonl", "metrics.csv", "clients.jsonl", ".lock"),
        "evaluations.jsonl",
        *("models/global.safetensors", "models/best.pth", "models/best.json"),
        *(f"rounds/0000{n}/{name}.json" for n in (3, 4, 5) for name in ("record", "cohort")),
        *("rounds/00005/model.safetensors", "rounds/00005/momentum.safetensors"),
    ]
    assert no_orphans(files, 5, 3) == []
    assert no_orphans([*files, orphan], 5, 3) == [f"{orphan} was left behind"]


def test_a_process_that_did_not_end_well_is_seen():
    assert ended_well({"server": 0, "a": 0}) == []
    assert ended_well({"server": -9, "a": None}) == ["server ended with -9", "a still ran"]


def test_too_few_faults_are_seen():
    assert enough(5, 5, "server kills") == []
    assert enough(4, 5, "server kills") == ["only 4 server kills, not 5"]
