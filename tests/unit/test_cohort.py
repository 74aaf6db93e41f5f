"""Cohort selection: a pure function of seed, round, attempt and who is there."""

import random

import pytest

from server.engine.cohort import cohort_size, select_cohort, wanted_updates

TEN = [f"client-{index}" for index in range(10)]


def test_a_fraction_of_0_3_picks_three_of_ten_in_each_round():
    for number in range(1, 30):
        cohort = select_cohort(7, number, 1, TEN, wanted_updates(10, 0.3, 1))
        assert len(set(cohort)) == 3
        assert set(cohort) <= set(TEN)


@pytest.mark.parametrize(
    ("live", "fraction", "min_cohort", "wanted"),
    [(10, 0.3, 1, 3), (10, 0.01, 1, 1), (10, 1.0, 1, 10), (10, 0.1, 4, 4), (2, 0.1, 4, 2)],
)
def test_the_updates_wanted_are_the_fraction_within_min_cohort_and_who_is_there(
    live, fraction, min_cohort, wanted
):
    assert wanted_updates(live, fraction, min_cohort) == wanted


def test_the_same_seed_round_and_attempt_select_the_same_clients():
    assert select_cohort(0, 1, 1, TEN, 3) == ("client-4", "client-5", "client-6")


@pytest.mark.parametrize("other", [(1, 1, 1), (0, 2, 1), (0, 1, 2)])
def test_another_seed_round_or_attempt_selects_others(other):
    assert select_cohort(*other, TEN, 3) != select_cohort(0, 1, 1, TEN, 3)


def test_every_client_is_selected_over_enough_rounds():
    seen = {client for number in range(30) for client in select_cohort(0, number, 1, TEN, 3)}
    assert seen == set(TEN)


def test_the_order_in_which_clients_came_does_not_matter():
    shuffled = random.Random(1).sample(TEN, 10)
    expected = select_cohort(3, 5, 1, TEN, 4)
    assert select_cohort(3, 5, 1, shuffled, 4) == expected
    assert select_cohort(3, 5, 1, frozenset(shuffled), 4) == expected
    assert list(expected) == sorted(expected)


def test_one_client_less_changes_at_most_one_place():
    for gone in TEN:
        before = set(select_cohort(0, 1, 1, TEN, 4))
        after = set(select_cohort(0, 1, 1, set(TEN) - {gone}, 4))
        assert before - after == ({gone} & before)


def test_all_are_selected_when_there_are_fewer_than_wanted():
    assert select_cohort(0, 1, 1, ["b", "a"], 5) == ("a", "b")


@pytest.mark.parametrize(
    ("wanted", "over_select", "live", "size"),
    [(10, 1.0, 20, 10), (50, 1.1, 99, 55), (10, 1.11, 20, 12), (10, 3.0, 20, 20)],
)
def test_over_selection_rounds_up_to_who_is_there(wanted, over_select, live, size):
    assert cohort_size(wanted, over_select, live) == size
