"""The clients of a run as operators see them, on a clock that the test turns."""

from types import SimpleNamespace

from common.tensors import Digest
from server.auth.callers import Everyone
from server.engine.engine import RunView
from server.run.ledger import RoundLedger
from server.run.roster import Roster
from server.run.sessions import Activity, Sessions
from server.run.uploads import StoredUpdate


def begin(*clients):
    """Return sessions of these clients, on partitions from 0, and their clock."""
    clock = SimpleNamespace(now=100.0)
    sessions = Sessions(10.0, lambda: clock.now, lambda _: None, lambda _: None, 100)
    for index, client in enumerate(clients):
        sessions.join(client, "one", index)
    return sessions, clock


def roster(sessions, clock, ledger=None, updates=None, **state):
    return Roster(
        RunView(**state), sessions, ledger or RoundLedger(90.0, 1), updates or {}, now=clock.now
    )


def shown(found):
    """Return each client's state and seconds."""
    summaries = map(found.summary, found.client_ids)
    return {one.client_id: (one.state, one.seconds) for one in summaries}


def test_a_state_lasts_since_it_began():
    sessions, clock = begin("a")
    session = sessions.by_client["a"]
    clock.now = 103.0
    session.turn_to(Activity.WAITING)  # It waits already.
    assert shown(roster(sessions, clock)) == {"a": ("WAITING", 3.0)}
    session.turn_to(Activity.TRAINING)
    with session.pulling():
        clock.now = 104.0
        with session.pulling():
            assert shown(roster(sessions, clock)) == {"a": ("PULLING", 1.0)}
        assert shown(roster(sessions, clock)) == {"a": ("PULLING", 1.0)}
        clock.now = 106.0
    assert shown(roster(sessions, clock)) == {"a": ("TRAINING", 0.0)}
    with session.pushing():
        clock.now = 108.0
        with session.pushing():  # A newer stream goes on with a broken upload.
            assert shown(roster(sessions, clock)) == {"a": ("PUSHING", 2.0)}
        session.turn_to(Activity.WAITING)  # The update is accepted.
    assert shown(roster(sessions, clock)) == {"a": ("WAITING", 0.0)}
    session.turn_to(Activity.EVALUATING)
    assert shown(roster(sessions, clock)) == {"a": ("EVALUATING", 0.0)}


def test_another_process_of_a_client_has_its_work_and_its_time():
    sessions, clock = begin("a")
    sessions.by_client["a"].turn_to(Activity.TRAINING)
    clock.now = 103.0
    sessions.join("a", "two", 0)
    assert shown(roster(sessions, clock)) == {"a": ("TRAINING", 3.0)}


def test_those_without_work_are_told_apart_by_what_the_round_has_of_them():
    sessions, clock = begin("a", "b", "c")
    cohort = {"cohort": ("a", "b"), "accepted": frozenset("a"), "failed": frozenset("b")}
    found = shown(roster(sessions, clock, **cohort))
    assert {client: state for client, (state, _) in found.items()} == {
        "a": "DONE",
        "b": "FAILED",
        "c": "WAITING",
    }
    sessions.by_client["a"].turn_to(Activity.EVALUATING)
    assert roster(sessions, clock, **cohort).summary("a").state == "EVALUATING"


def test_one_who_left_is_lost_while_the_round_may_want_it_and_then_forgotten():
    sessions, clock = begin("a", "b")
    sessions.leave(sessions.by_client["b"].token, Everyone())
    ledger = RoundLedger(90.0, 2, partitions={"a": 0, "b": 1}, left={"b": 97.0})
    found = roster(sessions, clock, ledger, cohort=("a", "b"), lost=frozenset("b"))
    assert shown(found)["b"] == ("LOST", 3.0)
    assert found.summary("b").partition == 1
    assert roster(sessions, clock, ledger).client_ids == ["a"]


def test_the_clients_of_before_a_restart_are_lost_until_they_come_again():
    sessions, clock = begin("b")
    sessions.await_clients(["a"])
    found = roster(sessions, clock)
    assert shown(found) == {"a": ("LOST", 10.0), "b": ("WAITING", 0.0)}
    assert found.summary("a").partition is None


def test_bytes_are_of_the_round_and_examples_and_loss_of_the_last_accepted_update():
    sessions, clock = begin("a", "b", "c")
    sessions.by_client["a"].trained = sessions.by_client["b"].trained = (5, {"loss": 2.0})
    ledger = RoundLedger(90.0, 3)
    ledger.count_down("a", 7)
    ledger.count_up("a", 8)
    update = StoredUpdate(
        file="1.safetensors",
        task_token="t",
        client_id="b",
        num_examples=6,
        scalars={"num_steps": 1},
        metrics={"loss": 1.0},
        digest=Digest("f" * 64, 1),
        norm=1.0,
        round=1,
        attempt=1,
    )
    found = roster(sessions, clock, ledger, {"b": update})
    summaries = [found.summary(client) for client in "abc"]
    assert [one.num_examples for one in summaries] == [5, 6, None]
    assert [one.train_loss for one in summaries] == [2.0, 1.0, None]
    assert [(one.bytes_down, one.bytes_up) for one in summaries] == [(7, 8), (0, 0), (0, 0)]
