"""The best round and early stopping."""

import pytest

from server.progress import Progress, advance, score_of, should_stop


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
