"""The ledger of one attempt, and the rows that come of it."""

from dataclasses import replace

import pytest

from common.tensors import Digest
from server.engine.early_stopping import Progress
from server.engine.engine import RunView
from server.engine.events import Phase
from server.run.ledger import RoundLedger
from server.run.uploads import StoredUpdate

MODEL = Digest("f" * 64, 100)
# Five were selected: two delivered, one was refused, one failed, one left.
VIEW = RunView(
    phase=Phase.COMMITTING,
    round=4,
    attempt=2,
    cohort=("a", "b", "c", "d", "e"),
    goal=3,
    accepted=frozenset("ab"),
    failed=frozenset("cd"),
    lost=frozenset("e"),
)


def update(client, num_examples, **metrics):
    return StoredUpdate(
        file="1.safetensors",
        task_token=client,
        client_id=client,
        num_examples=num_examples,
        scalars={},
        metrics=metrics,
        digest=MODEL,
        norm=2.0,
        round=1,
        attempt=2,
    )


UPDATES = {"b": update("b", 10, loss=1.0), "a": update("a", 100, loss=0.5)}


def ledger(**values):
    """Return the ledger of an attempt that began at second 100 and was aggregated."""
    attempt = RoundLedger(100.0, 6, collected=102.0, aggregated=102.5, **values)
    attempt.refused.add("c")
    return attempt


def row_of(attempt, progress=None):
    return attempt.row(VIEW, UPDATES, MODEL, progress or Progress(), now=104.0)


def test_a_row_counts_clients_examples_and_seconds():
    row, _ = row_of(ledger(evaluating_since=103.0))
    assert (row.round, row.attempt, row.num_clients, row.cohort_size) == (4, 2, 6, 5)
    assert (row.report_goal, row.accepted, row.dropped, row.refused) == (3, 2, 2, 1)
    assert (row.num_examples, row.model_blake3) == (110, "f" * 64)
    assert (row.collect_seconds, row.aggregate_seconds) == (2.0, 0.5)
    assert (row.evaluate_seconds, row.duration_seconds) == (1.0, 4.0)


def test_selected_clients_that_were_not_waited_for_are_dropped():
    state = RunView(round=1, cohort=("a", "b", "c"), goal=2, accepted=frozenset("ab"))
    attempt = RoundLedger(0.0, 3, collected=1.0, aggregated=1.0)
    assert attempt.row(state, UPDATES, MODEL, Progress(), now=1.0)[0].dropped == 1


def test_an_update_that_was_left_out_is_rejected_and_counts_nowhere():
    attempt = ledger()
    attempt.refused.add("d")
    updates = UPDATES | {"d": update("d", 1000, loss=9e8)}
    row, _ = attempt.row(VIEW, updates, MODEL, Progress(), now=104.0)
    assert (row.accepted, row.refused, row.dropped) == (2, 2, 1)
    assert (row.num_examples, row.train_loss) == (110, (100 * 0.5 + 10 * 1.0) / 110)
    found = {one["client_id"]: one for one in attempt.client_rows(VIEW, updates)}["d"]
    assert (found["outcome"], found["share"], found["update_norm"]) == ("refused", None, 2.0)
    assert (found["num_examples"], found["train_loss"]) == (1000, 9e8)
    before = replace(VIEW, accepted=frozenset("abd"), failed=frozenset("c"))
    assert attempt.summary(before, "abandoned").accepted == 2


def test_while_the_attempt_runs_only_those_who_will_not_report_are_dropped():
    assert ledger().dropped(VIEW) == 2
    assert ledger().dropped(RunView(cohort=("a", "b", "c"))) == 0


def test_metrics_are_means_weighted_by_examples():
    evaluations = {
        "b": (30, {"loss": 1.0, "accuracy": 1.0, "f1": 0.5}),
        "a": (10, {"loss": 3.0, "accuracy": 0.0}),
        "d": (0, {}),
    }
    row, _ = row_of(ledger(evaluations=evaluations))
    assert row.train_loss == (100 * 0.5 + 10 * 1.0) / 110
    assert (row.client_accuracy, row.client_loss) == (0.75, 1.5)
    assert row.client_metrics == {"f1": 0.5}


def test_the_spread_counts_each_client_that_has_examples_as_one():
    accuracies = dict(zip("abcde", (0.9, 0.1, 0.5, 0.7, 0.8), strict=True))
    evaluations = {c: (10, {"accuracy": x, "loss": 1 - x}) for c, x in accuracies.items()}
    evaluations |= {"f": (0, {"accuracy": 0.0}), "g": (5, {"loss": 0.5})}
    row, _ = row_of(ledger(evaluations=evaluations))
    assert (row.client_accuracy_min, row.client_accuracy_max) == (0.1, 0.9)
    assert row.client_accuracy_median == 0.7
    # Four tenths of the way from the lowest of five to the next.
    assert row.client_accuracy_p10 == pytest.approx(0.1 + 0.4 * (0.5 - 0.1))
    assert row.client_loss_median == pytest.approx(0.4)
    assert row.fine_tuned_accuracy_min is row.fine_tuning_gain is None


def test_the_gain_of_fine_tuning_is_weighted_and_of_those_who_did_both():
    evaluations = {
        "a": (30, {"accuracy": 0.5, "fine_tuned_accuracy": 0.75, "fine_tuned_loss": 1.0}),
        "b": (10, {"accuracy": 0.5, "fine_tuned_accuracy": 0.25, "fine_tuned_loss": 1.0}),
        "c": (90, {"accuracy": 0.5}),
        "d": (0, {}),
    }
    row, _ = row_of(ledger(evaluations=evaluations))
    assert row.fine_tuning_gain == 0.125
    assert (row.fine_tuned_accuracy_min, row.fine_tuned_accuracy_max) == (0.25, 0.75)
    assert row.client_metrics == {"fine_tuned_accuracy": 0.625, "fine_tuned_loss": 1.0}


def test_what_was_not_evaluated_is_absent_and_no_zero():
    row, progress = row_of(ledger(), Progress(best_round=1, best_score=0.5))
    assert row.global_accuracy is row.global_loss is row.client_accuracy is None
    assert row.client_loss is row.evaluate_seconds is None
    assert row.client_accuracy_min is row.client_loss_p10 is row.fine_tuning_gain is None
    assert (row.global_metrics, row.client_metrics, row.best_round) == ({}, {}, 1)
    assert progress == Progress(best_round=1, best_score=0.5)


def test_the_best_round_is_chosen_by_the_server_if_it_evaluates_else_by_the_clients():
    clients = {"a": (1, {"accuracy": 0.9})}
    metrics = {"accuracy": 0.6, "loss": 2.0, "f1": 0.1}
    row, progress = row_of(ledger(global_metrics=metrics, evaluations=clients))
    assert progress == Progress(best_round=4, best_score=0.6, first_loss=2.0, last_loss=2.0)
    assert (row.best_round, row.global_accuracy, row.global_loss) == (4, 0.6, 2.0)
    assert row.global_metrics == {"f1": 0.1}
    _, progress = row_of(ledger(evaluations=clients))
    assert progress.best_score == 0.9


def test_a_loss_that_is_not_finite_is_known_though_no_row_holds_it():
    row, progress = row_of(ledger(loss_is_finite=False, global_metrics={"accuracy": 0.1}))
    assert row.global_loss is None
    assert (progress.worse, progress.last_loss) == (1, None)


def test_bytes_add_up_by_client():
    attempt = ledger()
    for client, size in [("a", 100), ("b", 100), ("a", 50)]:
        attempt.count_down(client, size)
        attempt.count_up(client, 2 * size)
    row, _ = row_of(attempt)
    assert (row.bytes_down, row.bytes_up, row.bytes_resent) == (250, 500, 0)
    assert (attempt.bytes_down, attempt.bytes_up) == ({"a": 150, "b": 100}, {"a": 300, "b": 200})


def test_there_is_no_row_before_the_updates_are_aggregated():
    with pytest.raises(ValueError, match="aggregated"):
        RoundLedger(0.0, 1).row(VIEW, UPDATES, MODEL, Progress(), now=1.0)


def test_each_client_of_the_cohort_has_a_row_in_client_id_order():
    evaluations = {"a": (7, {"loss": 0.25, "accuracy": 0.5, "f1": 0.75})}
    attempt = ledger(evaluations=evaluations, partitions={"a": 3})
    attempt.report_seconds["a"] = 1.5
    attempt.shares = {"a": 0.25, "b": 0.75}
    attempt.count_up("a", 10)
    rows = attempt.client_rows(VIEW, UPDATES)
    assert [(row["client_id"], row["outcome"]) for row in rows] == [
        ("a", "accepted"),
        ("b", "accepted"),
        ("c", "refused"),
        ("d", "dropped"),
        ("e", "dropped"),
    ]
    assert rows[0] == {
        "round": 4,
        "client_id": "a",
        "partition": 3,
        "outcome": "accepted",
        "num_examples": 100,
        "share": 0.25,
        "update_norm": 2.0,
        "train_loss": 0.5,
        "validation_examples": 7,
        "validation_loss": 0.25,
        "validation_accuracy": 0.5,
        "fine_tuned_loss": None,
        "fine_tuned_accuracy": None,
        "seconds": 1.5,
        "bytes_down": None,
        "bytes_up": 10,
        "train_metrics": {},
        "validation_metrics": {"f1": 0.75},
    }
    known = {"round", "client_id", "outcome", "train_metrics", "validation_metrics"}
    assert {value for name, value in rows[4].items() if name not in known} == {None}


def test_a_client_that_only_evaluates_has_a_row_too():
    tuned = {"accuracy": 0.5, "fine_tuned_accuracy": 0.75, "fine_tuned_loss": 0.25}
    evaluations = {"z": (7, tuned), "d": (8, {"accuracy": 0.25}), "aa": (0, {})}
    rows = {row["client_id"]: row for row in ledger(evaluations=evaluations).client_rows(VIEW, {})}
    assert list(rows) == ["a", "aa", "b", "c", "d", "e", "z"]
    assert rows["z"]["outcome"] == rows["aa"]["outcome"] == "not_selected"
    assert (rows["z"]["num_examples"], rows["z"]["validation_examples"]) == (None, 7)
    assert (rows["z"]["fine_tuned_accuracy"], rows["z"]["fine_tuned_loss"]) == (0.75, 0.25)
    assert (rows["d"]["outcome"], rows["d"]["validation_accuracy"]) == ("dropped", 0.25)
