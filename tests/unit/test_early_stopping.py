"""The best round and early stopping."""

import json
from dataclasses import asdict

import pytest

from server.engine.early_stopping import Progress, advance, score_of, should_stop, worthless


def after(*scores):
    progress = Progress()
    for number, score in enumerate(scores, start=1):
        progress = advance(progress, number, score)
    return progress


@pytest.mark.parametrize(
    ("accuracy", "loss", "score"), [(0.5, 3.0, 0.5), (None, 3.0, -3.0), (None, None, None)]
)
def test_rounds_are_compared_by_accuracy_else_by_minus_the_loss(accuracy, loss, score):
    assert score_of(accuracy, loss) == score


def test_the_best_round_is_the_first_with_the_highest_score():
    assert after(0.1, 0.7, 0.7, 0.3) == Progress(best_round=2, best_score=0.7, stale=2)


def test_a_new_best_ends_the_wait():
    assert after(0.7, 0.6, 0.8) == Progress(best_round=3, best_score=0.8, stale=0)


def test_a_score_of_zero_is_a_score():
    assert after(0.0, -0.1) == Progress(best_round=1, best_score=0.0, stale=1)


def test_a_round_that_was_not_evaluated_changes_nothing():
    assert after(0.7, None, 0.6, None) == Progress(best_round=1, best_score=0.7, stale=1)
    assert after(None) == Progress()


@pytest.mark.parametrize(("accuracy", "stops"), [(0.89, False), (0.9, True), (None, False)])
def test_the_target_accuracy_stops_once_it_is_reached(accuracy, stops):
    assert should_stop(Progress(), accuracy, 0.9, None) is stops


@pytest.mark.parametrize(("stale", "stops"), [(1, False), (2, True), (3, True)])
def test_patience_stops_after_so_many_evaluations_without_a_new_best(stale, stops):
    assert should_stop(Progress(stale=stale), 0.5, None, 2) is stops


def test_without_target_and_patience_nothing_stops():
    assert not should_stop(Progress(stale=1000), 1.0, None, None)


def losses(*values):
    progress = Progress()
    for number, loss in enumerate(values, start=1):
        progress = advance(progress, number, None, loss)
    return progress


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "worse"),
    [
        ((2.3,), 0),
        ((2.3, 2.3), 0),
        ((2.3, 2.4, 2.5), 2),
        ((2.3, 2.4, 1.0), 0),
        ((2.3, 0.1, None, 9.0, None), 1),  # Rounds without an evaluation change nothing.
        ((2.3, NAN, INF, 9.0), 3),
        ((NAN,), 1),
        ((), 0),
    ],
)
def test_evaluations_in_a_row_that_are_worse_than_the_first_are_counted(values, worse):
    assert losses(*values).worse == worse


def test_what_is_kept_of_a_loss_can_be_written_as_json():
    assert json.loads(json.dumps(asdict(losses(2.3, NAN)), allow_nan=False))["last_loss"] is None


@pytest.mark.parametrize(
    ("values", "patience", "diverging", "is_worthless"),
    [
        ((2.3, 1.0), None, True, False),
        ((2.3, *[9.0] * 4), None, False, False),
        ((2.3, *[9.0] * 5), None, False, True),
        ((2.3, 9.0), 2, False, False),
        ((2.3, 9.0, 9.0), 2, False, True),
        ((2.3, 9.0), None, True, True),
        ((2.3, INF), None, False, True),
        ((NAN,), 9, False, True),
        ((), 1, True, False),
    ],
)
def test_a_model_is_worthless_once_its_loss_stays_above_the_first(
    values, patience, diverging, is_worthless
):
    why = worthless(losses(*values), patience, diverging)
    assert (why is not None) is is_worthless


def test_why_a_model_is_worthless_names_both_losses():
    assert worthless(losses(2.25, 3e10), None, True) == (
        "the model has become worthless: its loss is 3e+10, after the first evaluated round it "
        "was 2.25"
    )
    assert worthless(losses(2.25, NAN), None, False).endswith("not finite")
