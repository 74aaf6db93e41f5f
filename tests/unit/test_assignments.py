"""The open assignments, by client and by token."""

import pytest

from server.run.assignments import Assignment, Assignments, Work, task_token


def assignment(client, work=Work.TRAIN, attempt=1):
    return Assignment(task_token("run", 1, attempt, client, work), client, 1, attempt, work, 0)


A, B = assignment("a"), assignment("b")


def opened(*assignments):
    found = Assignments()
    found.replace(assignments)
    return found


def test_a_token_is_the_same_after_a_restart():
    assert A.task_token == "a6bd8c090b6df0e8e93f675977180003"


def test_a_token_names_run_round_attempt_client_and_work():
    names = [
        ("run", 1, 1, "a", Work.TRAIN),
        ("run2", 1, 1, "a", Work.TRAIN),
        ("run", 2, 1, "a", Work.TRAIN),
        ("run", 1, 2, "a", Work.TRAIN),
        ("run", 1, 1, "b", Work.TRAIN),
        ("run", 1, 1, "a", Work.EVALUATE),
        ("run", 11, 1, "a", Work.TRAIN),
        ("run", 1, 11, "a", Work.TRAIN),
    ]
    assert len({task_token(*name) for name in names}) == len(names)


def test_an_open_assignment_is_found_by_its_client_and_by_its_token():
    open_now = opened(A, B)
    assert open_now.of_client("a") == A
    assert open_now.find(B.task_token, "b") == B
    assert open_now.of_client("c") is None


def test_a_token_is_of_no_use_to_another_client():
    assert opened(A, B).find(A.task_token, "b") is None


def test_a_finished_assignment_is_closed_and_remembered_for_its_client_only():
    open_now = opened(A, B)
    open_now.finish(A.task_token)
    assert open_now.of_client("a") is None
    assert open_now.find(A.task_token, "a") is None
    assert open_now.of_client("b") == B
    assert open_now.was_finished(A.task_token, "a")
    assert not open_now.was_finished(A.task_token, "b")
    assert not open_now.was_finished(B.task_token, "b")


def test_finishing_twice_or_what_is_unknown_changes_nothing():
    open_now = opened(A)
    open_now.finish("nonsense")
    open_now.finish(A.task_token)
    open_now.finish(A.task_token)
    assert open_now.was_finished(A.task_token, "a")
    assert not open_now.was_finished("nonsense", "a")


@pytest.mark.parametrize("newer", [(), (assignment("a", Work.EVALUATE),)])
def test_new_assignments_close_the_old_and_remember_the_finished(newer):
    open_now = opened(A, B)
    open_now.finish(B.task_token)
    open_now.replace(newer)
    assert open_now.find(A.task_token, "a") is None
    assert open_now.was_finished(B.task_token, "b")
    assert not open_now.was_finished(A.task_token, "a")
    assert [open_now.of_client("a")] == [*newer, None][:1]


def test_what_was_finished_is_remembered_for_one_more_attempt():
    open_now = opened(A, B)
    open_now.finish(B.task_token)
    for attempt, remembered in ((2, True), (3, False)):
        open_now.replace(())
        open_now.replace([assignment("a", attempt=attempt)])
        open_now.replace([assignment("a", Work.EVALUATE, attempt)])
        assert open_now.was_finished(B.task_token, "b") == remembered
