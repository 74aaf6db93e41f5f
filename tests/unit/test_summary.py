"""What a run's rows come to is the same for its report and for the dashboard."""

import math
from dataclasses import asdict

import pytest

from scripts.summary import Summary, by_round, numbers, own_names, summary_of
from tests.recorded import row


def summary(*rows):
    return summary_of(asdict(row(number, **changes)) for number, changes in enumerate(rows, 1))


def test_the_best_round_is_the_one_that_the_server_called_so():
    best = {"best_round": 2}
    # A tie, which the server broke for the earlier round, whose model it published as the best.
    found = summary({}, {"global_accuracy": 0.9}, {"global_accuracy": 0.9, **best})
    assert found.best_is_known
    assert found.best["round"] == 2
    assert (found.measure, found.of(found.best)) == ("accuracy", 0.9)


def test_of_a_run_without_a_best_round_it_is_the_last_and_said_to_be_unknown():
    found = summary({}, {"best_round": None})
    assert (found.best["round"], found.best_is_known) == (2, False)


def test_the_final_value_is_of_the_last_round_that_was_evaluated():
    found = summary({}, {"global_accuracy": 0.25}, {"global_accuracy": None, "global_loss": None})
    assert (found.last["round"], found.final["round"], found.of(found.final)) == (3, 2, 0.25)


def test_where_the_server_never_evaluates_the_clients_values_count():
    found = summary({"global_accuracy": None, "global_loss": None})
    assert found.side == "client"
    assert found.of(found.final) == row(1).client_accuracy


def test_where_nobody_measures_an_accuracy_the_loss_counts():
    nothing = {"global_accuracy": None}
    found = summary(nothing, nothing)
    assert (found.measure, found.of(found.final)) == ("loss", row(2).global_loss)


def test_rounds_are_added_up_as_far_as_is_known():
    found = summary({}, {}, {"bytes_up": None, "bytes_resent": None})
    assert found.total("bytes_up") == 6_000
    assert found.total("no such column") is None


def test_a_run_without_rounds_has_a_summary_too():
    found = summary_of([])
    assert found == Summary(rows=[])
    assert (found.last, found.best, found.final, found.best_is_known) == ({}, {}, {}, False)
    assert found.of(found.final) is None


@pytest.mark.parametrize("value", [None, "0.5", True, [1], math.inf, math.nan, 10**400])
def test_what_is_no_finite_number_is_not_there(value):
    assert numbers({"round": 1, "x": value}) == {"round": 1}
    assert numbers({"round": 1, "global_metrics": value}) == {"round": 1}
    assert numbers({"round": 1, "global_metrics": {"f1": value}}) == {"round": 1}


def test_a_tasks_own_metrics_are_columns_and_take_no_other_columns_place():
    line = {"global_accuracy": 0.5, "global_metrics": {"accuracy": 1.0, "f1": 0.25}}
    found = numbers(line | {"client_metrics": {"a\nb": 2.0}})
    assert found == {"global_accuracy": 0.5, "global_f1": 0.25, "client_a b": 2.0}
    assert own_names([found]) == ["client_a b", "global_f1"]


def test_rounds_are_in_order_and_the_later_line_of_a_round_counts():
    lines = [{"round": 2, "x": 1}, {"round": "3"}, {}, {"round": 1}, {"round": 2, "x": 5}]
    assert by_round(lines) == [{"round": 1}, {"round": 2, "x": 5}]
