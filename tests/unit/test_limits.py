"""The bounds of requests, and the pace of joining."""

import math

import pytest

from common.bounds import MAX_METRICS
from common.errors import RequestError
from server.run.limits import (
    Pace,
    check_client_id,
    check_task_names,
    metrics_objection,
)

MAX_NAME = "n" * 64


@pytest.mark.parametrize("name", ["a", "A-z_0.9", "x" * 128])
def test_a_client_id_is_letters_digits_dots_and_dashes(name):
    check_client_id(name)


@pytest.mark.parametrize(
    "name", ["", "x" * 129, "a/b", "a b", "ä", "a\n", "../a\0", "a\u202eb", "-\t"]
)
def test_no_other_client_id_passes(name):
    with pytest.raises(RequestError, match="client_id must be"):
        check_client_id(name)


def test_as_many_task_names_as_may_be_pass_and_no_more():
    check_task_names(["t" * 256] * 64)
    for names in (["t"] * 65, ["t" * 257]):
        with pytest.raises(RequestError, match="task_names"):
            check_task_names(names)


@pytest.mark.parametrize(
    ("metrics", "objection"),
    [
        ({}, None),
        ({MAX_NAME: -1e308}, None),
        ({str(n): 0.0 for n in range(MAX_METRICS)}, None),
        ({str(n): 0.0 for n in range(MAX_METRICS + 1)}, "more than"),
        ({MAX_NAME + "n": 0.0}, "name"),
        ({"": 0.0}, "name"),
        ({"loss": math.nan}, "finite"),
        ({"loss": -math.inf}, "finite"),
        ({"accuracy": 0.0, "fine_tuned_accuracy": 1.0, "loss": 1e9}, None),
        ({"accuracy": 1e9}, "accuracy must be from 0 to 1, not 1e+09"),
        ({"accuracy": -1e-9}, "accuracy must be from 0 to 1"),
        ({"loss": 1.0, "fine_tuned_accuracy": 1.01}, "fine_tuned_accuracy must be from 0 to 1"),
    ],
)
def test_metrics_are_few_finite_and_have_short_names(metrics, objection):
    found = metrics_objection(metrics)
    assert (found is None) if objection is None else (objection in found)


def test_ten_thousand_at_once_are_told_times_of_their_own_and_all_come_in():
    pace, waiting, came = Pace(500.0), [(0.0, n) for n in range(10_000)], []
    for _ in range(1000):
        again = []
        for when, number in sorted(waiting):
            seconds = pace.admit(when)
            if seconds:
                again.append((when + seconds, number))
            else:
                came.append(when)
        waiting = again
        if not waiting:
            break
    assert len(came) == 10_000
    # No second lets in more than twice the rate, its own and what may come at once.
    for second in range(int(max(came)) + 1):
        assert sum(second <= when < second + 1 for when in came) <= 1000
    assert max(came) < 60
