"""The answers of some clients, counted."""

import pytest

from server.engine.collect import Collect

ASKED = Collect.of(("a", "b", "c"), goal=2, quorum=1, deadline=1.0)


def test_an_answer_counts_once_and_of_those_who_were_asked():
    one = ASKED.take("a")
    assert (one.got, one.awaited, one.has_quorum, one.at_goal) == ({"a"}, {"b", "c"}, True, False)
    assert one.take("a") is one.take("z") is one
    assert one.take("b").at_goal


def test_who_is_lost_is_not_awaited_but_may_come_back_or_answer():
    lost = ASKED.lose(["a", "b", "z"])
    assert (lost.lost, lost.awaited) == ({"a", "b"}, {"c"})
    assert lost.regain("a").awaited == {"a", "c"}
    assert (lost.take("b").got, lost.take("b").lost) == ({"b"}, {"a"})
    assert ASKED.regain("a") is ASKED
    assert lost.lose(["a"]) is lost


@pytest.mark.parametrize("failed", [ASKED.fail("a"), ASKED.lose(["a"]).fail("a")])
def test_who_failed_neither_answers_nor_comes_back(failed):
    assert failed.failed == {"a"}
    assert (
        failed.take("a") is failed.lose(["a"]) is failed.regain("a") is failed.fail("a") is failed
    )


def test_an_answer_that_is_in_can_be_rejected_but_not_lost():
    taken = ASKED.take("a").take("b")
    assert taken.lose(["a"]) is taken.fail("a") is taken
    rejected = taken.reject(frozenset("ab"))
    assert (rejected.got, rejected.failed, rejected.has_quorum) == (set(), {"a", "b"}, False)
