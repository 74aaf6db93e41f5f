"""The round engine: each row of its table, and that nothing else happens."""

import os
import random
import re
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import get_args

import pytest

import server
from server.engine import rounds
from server.engine.engine import Standing
from server.engine.events import (
    Abandon,
    Aggregate,
    Aggregated,
    AggregationFailed,
    BeginRound,
    ClientEvaluated,
    ClientJoined,
    ClientLeft,
    Commit,
    Committed,
    DeadlinePassed,
    Evaluate,
    Event,
    Finish,
    KeepUpdate,
    Phase,
    ServerEvaluated,
    StartDeadline,
    StopRequested,
    UpdateReceived,
    UpdatesRejected,
    WorkFailed,
)
from server.engine.rounds import (
    Finished,
    Policy,
    RoundEngine,
    State,
    is_due,
    quorum_of,
)

# Three clients, all of them wanted, a quorum of two.
POLICY = Policy(
    rounds=3,
    seed=0,
    min_clients=3,
    fraction=1.0,
    min_cohort=1,
    over_select=1.0,
    report_goal=None,
    quorum=None,
    report_deadline=60.0,
    max_attempts=3,
    evaluate_every=1,
    client_evaluate_every=1,
    evaluation_clients="cohort",
)


def transition(policy, state, event):
    return RoundEngine(policy).transition(state, event)


def resume(policy, **standing):
    return RoundEngine(policy).resume(Standing(**standing))


def play(policy, state, *events):
    """Return the state after the events, and the effects of the last."""
    effects = ()
    for event in events:
        state, effects = transition(policy, state, event)
    return state, effects


def seen(state):
    return RoundEngine(POLICY).view(state)


def joined(*clients):
    return [ClientJoined(client) for client in clients]


def updates(*clients, attempt=1):
    return [UpdateReceived(1, attempt, client) for client in clients]


def deadline(phase=Phase.REPORTING, attempt=1):
    return DeadlinePassed(1, attempt, phase)


def reporting(policy=POLICY):
    return play(policy, State(), *joined("a", "b", "c"))[0]


def aggregating(policy=POLICY):
    return play(policy, reporting(policy), *updates("a", "b", "c"))[0]


def evaluating(policy=POLICY):
    return play(policy, aggregating(policy), Aggregated())[0]


def committing(policy=POLICY):
    state, _ = play(policy, evaluating(policy), deadline(Phase.EVALUATING), ServerEvaluated())
    return state


STATES = {
    Phase.SELECTING: State(live=frozenset({"a", "b"})),
    Phase.REPORTING: reporting(),
    Phase.AGGREGATING: aggregating(),
    Phase.EVALUATING: evaluating(),
    Phase.COMMITTING: committing(),
    Phase.FINISHED: replace(committing(), at=Finished(committing().at.reports)),
}
# For each phase, an event of each type that fits the state as well as it can.
EVENTS = {
    phase: [
        ClientJoined("new"),
        ClientLeft("a"),
        UpdateReceived(1, 1, "a"),
        WorkFailed(1, 1, "a"),
        DeadlinePassed(1, 1, phase),
        UpdatesRejected(frozenset("a"), "too long"),
        Aggregated(),
        AggregationFailed("overflow"),
        ServerEvaluated(),
        ClientEvaluated(1, 1, "a"),
        Committed(stop_early=False),
        StopRequested(),
    ]
    for phase in Phase
}
PAIRS = [(phase, event) for phase in Phase for event in EVENTS[phase]]
ALWAYS = {ClientJoined, ClientLeft, StopRequested}
LISTED = {
    Phase.SELECTING: ALWAYS,
    Phase.REPORTING: ALWAYS | {UpdateReceived, WorkFailed, DeadlinePassed},
    Phase.AGGREGATING: ALWAYS | {UpdatesRejected, Aggregated, AggregationFailed},
    Phase.EVALUATING: ALWAYS | {ServerEvaluated, ClientEvaluated, WorkFailed, DeadlinePassed},
    Phase.COMMITTING: ALWAYS | {Committed},
    Phase.FINISHED: set(),
}


@pytest.mark.parametrize(("phase", "event"), PAIRS)
def test_only_the_pairs_of_the_table_change_anything(phase, event):
    before = STATES[phase]
    assert seen(before).phase is phase
    after, effects = transition(POLICY, before, event)
    if type(event) in LISTED[phase]:
        assert after != before
    else:
        assert (after, effects) == (before, ())


def test_a_round_begins_as_soon_as_enough_clients_are_there():
    state, effects = play(POLICY, State(), *joined("b", "a"))
    assert (seen(state).phase, effects) == (Phase.SELECTING, ())
    state, effects = play(POLICY, state, ClientLeft("a"), *joined("c"))
    assert (seen(state).phase, effects) == (Phase.SELECTING, ())
    state, effects = play(POLICY, state, *joined("a"))
    assert (seen(state).phase, seen(state).cohort, seen(state).goal) == (
        Phase.REPORTING,
        ("a", "b", "c"),
        3,
    )
    assert effects == (BeginRound(1, 1), StartDeadline(60.0, deadline()))


def test_the_goal_ends_reporting_and_later_updates_are_dropped():
    policy = replace(POLICY, report_goal=2)
    state, effects = play(policy, reporting(policy), *updates("c"))
    assert (seen(state).phase, effects) == (Phase.REPORTING, (KeepUpdate("c"),))
    state, effects = play(policy, state, *updates("a"))
    assert (seen(state).phase, effects) == (Phase.AGGREGATING, (KeepUpdate("a"), Aggregate()))
    state, effects = play(policy, state, *updates("b"))
    assert (seen(state).accepted, effects) == ({"a", "c"}, ())


def test_an_update_counts_once():
    state, effects = play(POLICY, reporting(), *updates("a", "a"))
    assert (seen(state).accepted, effects) == ({"a"}, ())


def test_a_client_outside_the_cohort_does_not_count():
    state, effects = play(POLICY, reporting(), *joined("d"), *updates("d"))
    assert (seen(state).accepted, effects) == (frozenset(), ())


def test_a_quorum_suffices_at_the_deadline():
    state, effects = play(POLICY, reporting(), *updates("a", "b"), deadline())
    assert (seen(state).phase, effects) == (Phase.AGGREGATING, (Aggregate(),))
    assert seen(state).accepted == {"a", "b"}


@pytest.mark.parametrize(
    ("quorum", "goal", "wanted"), [(None, 1, 1), (None, 3, 2), (None, 4, 2), (2, 3, 2), (5, 3, 3)]
)
def test_the_quorum_is_half_the_goal_unless_given_and_never_more_than_the_goal(
    quorum, goal, wanted
):
    assert quorum_of(replace(POLICY, quorum=quorum), goal) == wanted


def test_a_deadline_without_quorum_abandons_the_attempt_and_begins_the_next():
    state, effects = play(POLICY, reporting(), *updates("a"), deadline())
    abandon, *begin = effects
    assert abandon == Abandon(1, 1, abandon.reason)
    assert "1 of the 2 updates" in abandon.reason
    assert begin == [BeginRound(1, 2), StartDeadline(60.0, deadline(attempt=2))]
    assert (seen(state).phase, state.round, state.attempt) == (Phase.REPORTING, 1, 2)
    assert (seen(state).accepted, seen(state).lost, seen(state).failed) == (
        frozenset(),
        frozenset(),
        frozenset(),
    )


def test_the_next_attempt_waits_for_enough_clients():
    state, effects = play(POLICY, reporting(), ClientLeft("a"), deadline())
    assert (seen(state).phase, state.attempt, len(effects)) == (Phase.SELECTING, 2, 1)
    assert (seen(state).cohort, seen(state).pending) == ((), frozenset())
    state, effects = play(POLICY, state, *joined("d"))
    assert (seen(state).phase, effects[0]) == (Phase.REPORTING, BeginRound(1, 2))
    assert seen(state).pending == {"b", "c", "d"}


def test_the_last_attempt_fails_the_run_and_names_the_flag():
    state = reporting()
    for attempt in (1, 2, 3):
        state, effects = play(POLICY, state, deadline(attempt=attempt))
    assert seen(state).phase is Phase.FINISHED
    assert "round 1 was abandoned 3 times (--max-attempts)" in seen(state).failure
    assert isinstance(effects[0], Abandon)
    assert effects[1:] == (Finish(),)


def test_with_nobody_left_to_report_a_quorum_aggregates_at_once():
    state, effects = play(POLICY, reporting(), *updates("a", "b"), WorkFailed(1, 1, "c"))
    assert (seen(state).phase, effects) == (Phase.AGGREGATING, (Aggregate(),))


def test_with_nobody_left_to_report_and_no_quorum_the_attempt_is_abandoned_at_once():
    events = [*updates("a"), WorkFailed(1, 1, "b"), ClientLeft("c")]
    state, effects = play(POLICY, reporting(), *events)
    assert (seen(state).phase, state.attempt) == (Phase.SELECTING, 2)
    assert effects[0].reason.startswith("nobody is left to report")


def test_a_lost_client_that_comes_back_is_awaited_again():
    state, _ = play(POLICY, reporting(), *updates("a", "b"), *joined("d"), ClientLeft("d"))
    back, _ = play(POLICY, reporting(), ClientLeft("c"), *joined("c"), *updates("a", "b"))
    assert seen(state).pending == seen(back).pending == {"c"}
    assert seen(back).phase is Phase.REPORTING


def test_an_update_of_a_lost_client_counts():
    state, effects = play(POLICY, reporting(), ClientLeft("a"), *updates("a"))
    assert (seen(state).accepted, seen(state).lost, effects) == (
        {"a"},
        frozenset(),
        (KeepUpdate("a"),),
    )


def test_a_failed_client_does_not_come_back():
    failed, _ = play(POLICY, reporting(), WorkFailed(1, 1, "a"))
    state, effects = play(POLICY, failed, ClientLeft("a"), *joined("a"), *updates("a"))
    assert (seen(state).failed, seen(state).accepted, effects) == ({"a"}, frozenset(), ())


def test_a_lost_client_whose_work_failed_does_not_come_back():
    state, _ = play(POLICY, reporting(), ClientLeft("a"), WorkFailed(1, 1, "a"), *joined("a"))
    assert seen(state).pending == {"b", "c"}


@pytest.mark.parametrize("event", [WorkFailed(1, 1, "a"), deadline(), *updates("a")])
def test_events_of_an_older_attempt_do_nothing(event):
    second, _ = play(POLICY, reporting(), deadline())
    state, effects = play(POLICY, second, event)
    assert (state, effects) == (second, ())


@pytest.mark.parametrize(
    "event", [ClientEvaluated(1, 0, "a"), WorkFailed(1, 0, "a"), deadline(Phase.REPORTING)]
)
def test_events_of_an_older_attempt_do_not_end_an_evaluation(event):
    before = evaluating()
    assert play(POLICY, before, event) == (before, ())


def test_over_selection_selects_more_clients_than_the_goal():
    policy = replace(POLICY, min_clients=10, fraction=0.5, over_select=1.4)
    state, _ = play(policy, State(), *joined(*"abcdefghij"))
    assert (len(seen(state).cohort), seen(state).goal) == (7, 5)


def test_the_goal_is_never_more_than_the_cohort():
    assert seen(reporting(replace(POLICY, report_goal=50))).goal == 3


@pytest.mark.parametrize(
    ("every", "number", "last", "due"),
    [
        (1, 5, False, True),
        (2, 4, False, True),
        (2, 5, False, False),
        (2, 5, True, True),
        (0, 4, False, False),
        (0, 4, True, False),
    ],
)
def test_evaluation_is_due_every_so_many_rounds_and_in_the_last_but_never_with_0(
    every, number, last, due
):
    assert is_due(every, number, last) is due


def test_the_candidate_is_passed_on_until_it_is_committed():
    state, effects = play(POLICY, aggregating(), Aggregated("candidate"))
    assert effects[0] == Evaluate(True, ("a", "b", "c"), "candidate")
    over = (deadline(Phase.EVALUATING), ServerEvaluated())
    assert play(POLICY, state, *over)[1] == (Commit("candidate"),)
    policy = replace(POLICY, evaluate_every=0, client_evaluate_every=0)
    assert play(policy, aggregating(), Aggregated("other"))[1] == (Commit("other"),)


def test_a_round_without_evaluation_is_committed_at_once():
    policy = replace(POLICY, evaluate_every=2, client_evaluate_every=0)
    state, effects = play(policy, aggregating(policy), Aggregated())
    assert (seen(state).phase, effects) == (Phase.COMMITTING, (Commit(),))


def test_the_last_round_is_evaluated():
    policy = replace(POLICY, rounds=1, evaluate_every=2, client_evaluate_every=0)
    state, effects = play(policy, aggregating(policy), Aggregated())
    assert (seen(state).phase, effects[0]) == (Phase.EVALUATING, Evaluate(True, ()))


def test_live_clients_whose_update_counts_evaluate_under_a_deadline_of_their_own():
    policy = replace(POLICY, evaluate_every=0, quorum=1)
    events = [*updates("c", "b"), WorkFailed(1, 1, "a"), ClientLeft("b"), Aggregated()]
    state, effects = play(policy, reporting(policy), *events)
    assert seen(state).phase is Phase.EVALUATING
    assert effects == (Evaluate(False, ("c",)), StartDeadline(60.0, deadline(Phase.EVALUATING)))


def test_every_client_that_is_there_evaluates_if_all_are_asked():
    policy = replace(POLICY, evaluation_clients="all", quorum=1)
    events = [*joined("d", "e"), *updates("c", "b"), WorkFailed(1, 1, "a"), ClientLeft("b")]
    state, effects = play(policy, reporting(policy), *events, ClientLeft("e"), Aggregated())
    assert effects[0] == Evaluate(True, ("a", "c", "d"))
    # Who comes later evaluates the next round's model.
    events = [*joined("f"), *(ClientEvaluated(1, 1, client) for client in "ac"), ServerEvaluated()]
    state, effects = play(policy, state, *events)
    assert (seen(state).phase, effects) == (Phase.EVALUATING, ())
    assert play(policy, state, ClientEvaluated(1, 1, "d"))[1] == (Commit(),)


def test_nobody_is_asked_when_no_evaluation_of_clients_is_due():
    policy = replace(POLICY, evaluation_clients="all", client_evaluate_every=2)
    assert play(policy, aggregating(policy), Aggregated())[1][0] == Evaluate(True, ())


def test_an_evaluation_ends_when_all_are_in_or_gone():
    events = [ClientEvaluated(1, 1, "a"), ServerEvaluated(), WorkFailed(1, 1, "b")]
    state, effects = play(POLICY, evaluating(), *events)
    assert (seen(state).phase, effects) == (Phase.EVALUATING, ())
    state, effects = play(POLICY, state, ClientLeft("c"))
    assert (seen(state).phase, effects) == (Phase.COMMITTING, (Commit(),))


def test_the_evaluation_deadline_waits_for_the_server_but_not_for_clients():
    state, effects = play(POLICY, evaluating(), deadline(Phase.EVALUATING))
    assert (seen(state).phase, effects) == (Phase.EVALUATING, ())
    assert play(POLICY, state, ServerEvaluated())[1] == (Commit(),)
    assert play(POLICY, evaluating(), ServerEvaluated(), deadline(Phase.EVALUATING))[1] == (
        Commit(),
    )


def test_the_next_round_begins_anew_with_the_clients_that_are_there():
    state, effects = play(POLICY, committing(), ClientLeft("a"), *joined("d"), Committed(False))
    assert effects[0] == BeginRound(2, 1)
    assert (state.round, state.attempt, seen(state).cohort) == (2, 1, ("b", "c", "d"))
    assert seen(state).pending == {"b", "c", "d"}


def test_updates_that_make_no_model_abandon_the_attempt_and_at_last_the_run():
    state, effects = play(POLICY, aggregating(), AggregationFailed("overflow"))
    assert effects[0] == Abandon(1, 1, "overflow")
    assert (seen(state).phase, state.attempt, seen(state).accepted) == (
        Phase.REPORTING,
        2,
        frozenset(),
    )
    policy = replace(POLICY, max_attempts=1)
    state, effects = play(policy, aggregating(policy), AggregationFailed("overflow"))
    assert effects == (Abandon(1, 1, "overflow"), Finish())
    assert seen(state).failure.endswith("overflow")


def test_updates_that_are_left_out_are_neither_counted_nor_evaluated_by_their_clients():
    rejected = UpdatesRejected(frozenset("b"), "too long")
    state, effects = play(POLICY, aggregating(), rejected)
    assert (seen(state).phase, effects) == (Phase.AGGREGATING, (Aggregate(),))
    assert (seen(state).accepted, seen(state).failed) == (frozenset("ac"), frozenset("b"))
    state, effects = play(POLICY, state, Aggregated())
    assert effects[0] == Evaluate(True, ("a", "c"))


def test_without_a_quorum_beside_those_left_out_the_attempt_is_abandoned():
    rejected = UpdatesRejected(frozenset("bc"), "2 are too long")
    state, effects = play(POLICY, aggregating(), rejected)
    reason = "2 are too long, with 1 of the 2 updates that a quorum needs"
    assert effects[0] == Abandon(1, 1, reason)
    assert (seen(state).phase, state.attempt, seen(state).accepted) == (
        Phase.REPORTING,
        2,
        frozenset(),
    )


def test_a_run_that_has_ended_only_ends_again():
    state, effects = resume(POLICY, round=3, live=frozenset({"a"}), ended=True)
    assert (seen(state).phase, state.round, effects) == (Phase.FINISHED, 3, (Finish(),))


def test_each_round_begins_with_its_first_attempt():
    events = [deadline(), *updates("a", "b", "c", attempt=2), Aggregated(), ServerEvaluated()]
    events += [ClientEvaluated(1, 2, client) for client in "abc"]
    state, effects = play(POLICY, reporting(), *events)
    assert (state.attempt, effects) == (2, (Commit(),))
    assert play(POLICY, state, Committed(stop_early=False))[1][0] == BeginRound(2, 1)


@pytest.mark.parametrize(
    ("rounds", "event"), [(1, Committed(False)), (3, Committed(stop_early=True))]
)
def test_the_run_ends_after_its_last_round_or_early(rounds, event):
    policy = replace(POLICY, rounds=rounds)
    state, effects = play(policy, committing(policy), event)
    assert (seen(state).phase, seen(state).failure, effects) == (Phase.FINISHED, None, (Finish(),))


def test_a_stop_while_waiting_for_clients_ends_the_run():
    state, effects = play(POLICY, State(round=2), StopRequested())
    assert (seen(state).phase, seen(state).failure, effects) == (Phase.FINISHED, None, (Finish(),))


def test_a_stop_during_a_round_makes_it_the_last():
    policy = replace(POLICY, evaluate_every=2, client_evaluate_every=0)
    state, effects = play(policy, reporting(policy), StopRequested())
    assert (seen(state).phase, effects) == (Phase.REPORTING, ())
    state, effects = play(policy, state, *updates("a", "b", "c"), Aggregated())
    assert effects[0] == Evaluate(True, ())
    state, effects = play(policy, state, ServerEvaluated(), Committed(stop_early=False))
    assert (seen(state).phase, effects) == (Phase.FINISHED, (Finish(),))


def test_after_a_stop_an_abandoned_attempt_is_not_tried_again():
    second = play(POLICY, replace(committing(), round=1), Committed(stop_early=False))[0]
    over = DeadlinePassed(2, 1, Phase.REPORTING)
    state, effects = play(POLICY, second, StopRequested(), over)
    assert (seen(state).phase, seen(state).failure) == (Phase.FINISHED, None)
    assert isinstance(effects[0], Abandon)
    assert effects[1:] == (Finish(),)


@pytest.mark.parametrize(
    ("before", "events"),
    [(State(), [StopRequested()]), (reporting(), [StopRequested(), deadline()])],
)
def test_a_run_that_is_stopped_before_its_first_round_is_committed_has_failed(before, events):
    state, effects = play(POLICY, before, *events)
    assert (seen(state).phase, effects[-1]) == (Phase.FINISHED, Finish())
    assert "before its first round" in seen(state).failure


def test_a_resumed_run_selects_if_enough_clients_are_awaited():
    state, effects = resume(POLICY, round=2, live=frozenset("ab"))
    assert (state, effects) == (State(round=2, live=frozenset("ab")), ())
    state, effects = resume(POLICY, round=2, live=frozenset("abc"))
    assert (seen(state).phase, effects[0]) == (Phase.REPORTING, BeginRound(2, 1))


def resumed_attempt(accepted, **standing):
    live, cohort = frozenset("abc"), tuple("abc")
    known = {"live": live, "cohort": cohort, "goal": 3, "accepted": frozenset(accepted)}
    return resume(POLICY, round=1, **known, **standing)


def test_a_resumed_attempt_goes_on_with_the_updates_that_are_in():
    before, _ = play(POLICY, reporting(), *updates("b"))
    state, effects = resumed_attempt("b")
    assert state == before
    assert effects == (BeginRound(1, 1), StartDeadline(60.0, deadline()))


def test_a_resumed_attempt_with_enough_updates_is_aggregated():
    state, effects = resumed_attempt("abc")
    assert (seen(state).phase, effects) == (Phase.AGGREGATING, (Aggregate(),))


def test_an_order_to_stop_holds_for_a_resumed_run():
    state, effects = resume(POLICY, round=2, live=frozenset("abc"), stopping=True)
    assert (seen(state).phase, seen(state).failure, effects) == (Phase.FINISHED, None, (Finish(),))
    state, _ = resume(POLICY, round=1, stopping=True)
    assert "before its first round" in seen(state).failure
    state, effects = resumed_attempt("b", stopping=True)
    assert (seen(state).stopping, effects[0]) == (True, BeginRound(1, 1))


def test_nobody_looks_into_an_engines_state():
    rooms = Path(server.__file__).parent
    modules = [*rooms.glob("*.py"), *(rooms / "run").glob("*.py"), *(rooms / "rpc").glob("*.py")]
    modules += (rooms / "prometheus").glob("*.py")
    reads = re.compile(r"\b(self|coordinator)\._?state\.")
    readers = [path.name for path in modules if reads.search(path.read_text())]
    assert readers == []
    assert len(modules) > 20


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_an_update_counts_once_and_each_round_commits_once(seed):
    rng = random.Random(seed)
    policy = replace(POLICY, rounds=4, max_attempts=50, quorum=1, report_goal=2)
    state, kept, commits, finishes = State(), [], [], 0
    for _ in range(400):
        who = rng.choice("abcd")
        number, attempt = max(1, state.round - rng.randrange(2)), state.attempt - rng.randrange(2)
        event = rng.choice(
            [
                *[ClientJoined(who)] * 3,
                ClientLeft(who),
                *[UpdateReceived(number, attempt, who)] * 3,
                WorkFailed(number, attempt, who),
                ClientEvaluated(number, attempt, who),
                DeadlinePassed(number, attempt, rng.choice(list(Phase))),
                Aggregated(),
                ServerEvaluated(),
                Committed(stop_early=False),
            ]
        )
        before = state
        state, effects = transition(policy, state, event)
        kept += [
            (before.round, before.attempt, effect.client_id)
            for effect in effects
            if isinstance(effect, KeepUpdate)
        ]
        commits += [before.round] * effects.count(Commit())
        finishes += effects.count(Finish())
        assert seen(state).accepted <= set(seen(state).cohort)
        assert (state.round, state.attempt) >= (before.round, before.attempt)
    assert len(kept) == len(set(kept))
    assert commits == list(range(1, len(commits) + 1))
    assert commits
    assert finishes == (seen(state).phase is Phase.FINISHED)


def happenings():
    """Return what each event led to in each phase of many random runs: phases and effects."""
    found = {}
    for seed in range(1000):
        rng = random.Random(seed)
        policy = replace(
            POLICY,
            rounds=rng.choice([1, 3]),
            max_attempts=rng.choice([1, 3]),
            min_clients=rng.choice([1, 2]),
            report_goal=rng.choice([None, 2]),
            quorum=rng.choice([None, 1, 2]),
            evaluate_every=rng.choice([0, 1]),
            client_evaluate_every=rng.choice([0, 1]),
        )
        state = State()
        for _ in range(150):
            who, now = rng.choice("abc"), (state.round, state.attempt)
            event = rng.choice(
                [
                    *[ClientJoined(who)] * 3,
                    *[ClientLeft(who)] * 2,
                    *[UpdateReceived(*now, who)] * 2,
                    WorkFailed(*now, who),
                    DeadlinePassed(*now, seen(state).phase),
                    UpdatesRejected(seen(state).accepted & {who}, "too long"),
                    Aggregated(),
                    AggregationFailed("overflow"),
                    ServerEvaluated(),
                    ClientEvaluated(*now, who),
                    Committed(stop_early=rng.random() < 0.1),
                    *[StopRequested()] * (rng.random() < 0.1),
                ]
            )
            before = state
            state, effects = transition(policy, before, event)
            if state != before or effects:
                row = found.setdefault((seen(before).phase, type(event).__name__), {})
                row[seen(state).phase, tuple(type(effect).__name__ for effect in effects)] = None
    return found


def table(found):
    """Return what happens as a table; events with the same outcomes share their rows."""
    by_outcomes = {}
    for (phase, event), outcomes in found.items():
        key = phase, frozenset(outcomes)
        by_outcomes.setdefault(key, set()).add(event)
    words = [event.__name__ for event in get_args(Event)]
    groups = [
        (list(Phase).index(phase), sorted(map(words.index, events)), outcomes)
        for (phase, outcomes), events in by_outcomes.items()
    ]
    lines, last = ["phase        event               next phase   effects"], None
    for phase, events, outcomes in sorted(groups, key=lambda group: group[:2]):
        rights = [
            f"{after.name:<13}{', '.join(effects)}"
            for after, effects in sorted(
                outcomes, key=lambda one: (list(Phase).index(one[0]), one[1])
            )
        ]
        lefts = [words[event] for event in events]
        first = list(Phase)[phase].name if phase != last else ""
        for left, right in zip_longest(lefts, rights, fillvalue=""):
            lines.append(f"{first:<13}{left:<20}{right}".rstrip())
            first = ""
        last = phase
    return "".join(f"    {line}\n" for line in lines)


def test_the_table_in_the_docstring_is_what_happens():
    """Compare the table with the written one; UPDATE_TABLES=1 writes it."""
    path, expected = Path(rounds.__file__), table(happenings())
    before, _, rest = path.read_text().partition("    phase  ")
    written, _, after = rest.partition("\n\n")
    if os.environ.get("UPDATE_TABLES"):
        path.write_text(f"{before}{expected}\n{after}")
    else:
        assert f"    phase  {written}\n" == expected
