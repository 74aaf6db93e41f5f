"""The round engine: (policy, state, event) -> (state, effects), and nothing else.

    phase        event               next phase   effects
    SELECTING    ClientJoined        SELECTING
                                     REPORTING    BeginRound, StartDeadline
                 ClientLeft          SELECTING
                 StopRequested       FINISHED     Finish
    REPORTING    ClientJoined        REPORTING
                 StopRequested
                 ClientLeft          SELECTING    Abandon
                 WorkFailed          REPORTING
                                     REPORTING    Abandon, BeginRound, StartDeadline
                                     AGGREGATING  Aggregate
                                     FINISHED     Abandon, Finish
                 UpdateReceived      SELECTING    KeepUpdate, Abandon
                                     REPORTING    KeepUpdate
                                     REPORTING    KeepUpdate, Abandon, BeginRound, StartDeadline
                                     AGGREGATING  KeepUpdate, Aggregate
                                     FINISHED     KeepUpdate, Abandon, Finish
                 DeadlinePassed      SELECTING    Abandon
                                     REPORTING    Abandon, BeginRound, StartDeadline
                                     AGGREGATING  Aggregate
                                     FINISHED     Abandon, Finish
    AGGREGATING  ClientJoined        AGGREGATING
                 ClientLeft
                 StopRequested
                 UpdatesRejected     SELECTING    Abandon
                                     REPORTING    Abandon, BeginRound, StartDeadline
                                     AGGREGATING  Aggregate
                                     FINISHED     Abandon, Finish
                 Aggregated          EVALUATING   Evaluate, StartDeadline
                                     COMMITTING   Commit
                 AggregationFailed   SELECTING    Abandon
                                     REPORTING    Abandon, BeginRound, StartDeadline
                                     FINISHED     Abandon, Finish
    EVALUATING   ClientJoined        EVALUATING
                 StopRequested
                 ClientLeft          EVALUATING
                 WorkFailed          COMMITTING   Commit
                 DeadlinePassed
                 ServerEvaluated
                 ClientEvaluated
    COMMITTING   ClientJoined        COMMITTING
                 ClientLeft
                 StopRequested
                 Committed           SELECTING
                                     REPORTING    BeginRound, StartDeadline
                                     FINISHED     Finish

REPORTING ends at the goal, at the deadline, or when nobody is left to report. With a quorum the
updates are aggregated; without one the attempt is abandoned. Another attempt follows, at once if
enough clients are live, unless this was the last one or the run is to stop.

After StopRequested the current round is the last one. A run that ends by it before its first
round is committed has failed. A deadline ends the wait for clients, not for the server's own
evaluation.

Any other (phase, event) pair changes nothing; an update that is not answered with KeepUpdate is
not wanted. Knows no clock, socket, file or random source: time arrives inside events and timers
are effects. The table is what happens in many random runs; UPDATE_TABLES=1 and its test write it.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from server.engine.cohort import cohort_size, select_cohort, wanted_updates
from server.engine.collect import Collect
from server.engine.engine import RunView, Standing
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
    Effect,
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


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The run's rules, fixed for its whole time; the fields are options of the server."""

    rounds: int
    seed: int
    min_clients: int
    fraction: float
    min_cohort: int
    over_select: float
    report_goal: int | None
    quorum: int | None
    report_deadline: float
    max_attempts: int
    evaluate_every: int
    client_evaluate_every: int
    evaluation_clients: Literal["cohort", "all"]


@dataclass(frozen=True)
class Selecting:
    """Nobody is selected yet."""

    phase: ClassVar = Phase.SELECTING
    reports: ClassVar = Collect()


@dataclass(frozen=True)
class Reporting:
    """The cohort trains."""

    phase: ClassVar = Phase.REPORTING
    answer: ClassVar = UpdateReceived
    reports: Collect

    @property
    def collect(self) -> Collect:
        """What is waited for."""
        return self.reports


@dataclass(frozen=True)
class Aggregating:
    """The updates that are in are combined."""

    phase: ClassVar = Phase.AGGREGATING
    reports: Collect


@dataclass(frozen=True)
class Evaluating:
    """The candidate is evaluated, by clients and, if `on_server`, here."""

    phase: ClassVar = Phase.EVALUATING
    answer: ClassVar = ClientEvaluated
    reports: Collect
    collect: Collect
    on_server: bool
    candidate: object


@dataclass(frozen=True)
class Committing:
    """The candidate becomes the run's model."""

    phase: ClassVar = Phase.COMMITTING
    reports: Collect
    candidate: object


@dataclass(frozen=True)
class Finished:
    """The run has ended; `reports` are those of its last attempt."""

    phase: ClassVar = Phase.FINISHED
    reports: Collect = field(default_factory=Collect)
    failure: str | None = None


# The phases that wait for clients: each says what it waits for, and which event is an answer.
Collecting = Reporting | Evaluating


@dataclass(frozen=True, kw_only=True)
class State:
    """All that the engine remembers between two events; `at` is the phase with its own data."""

    at: Selecting | Reporting | Aggregating | Evaluating | Committing | Finished = Selecting()
    round: int = 1
    attempt: int = 1
    live: frozenset[str] = frozenset()
    stopping: bool = False

    @property
    def deadline(self) -> DeadlinePassed:
        """What ends the wait of this phase."""
        return DeadlinePassed(self.round, self.attempt, self.at.phase)


Step = tuple[State, tuple[Effect, ...]]


def is_due(every: int, round_number: int, last: bool) -> bool:
    """Say whether something done every `every` rounds (0: never) and in the last is due."""
    return every > 0 and (last or round_number % every == 0)


def quorum_of(policy: Policy, goal: int) -> int:
    """Return the updates that suffice at the deadline: as configured, else half the goal."""
    return min(goal, policy.quorum) if policy.quorum else (goal + 1) // 2


@dataclass(frozen=True)
class RoundEngine:
    """Rounds one after the other, each with a cohort of its own; an `Engine`."""

    policy: Policy

    def resume(self, standing: Standing) -> Step:
        """Begin, or go on with what a run directory gave back.

        Between rounds that is a selection if enough clients are awaited. The cohort of an attempt
        gets its work again, or its updates are already enough.
        """
        state = State(
            round=standing.round,
            attempt=standing.attempt,
            live=standing.live,
            stopping=standing.stopping,
        )
        if standing.ended:
            return replace(state, at=Finished()), (Finish(),)
        if not standing.cohort:
            return self._stop(state) if state.stopping else self._select_if_enough(state)
        reports = self._reports(standing.cohort, standing.goal, standing.accepted)
        state, effects = self._after_report(replace(state, at=Reporting(reports)))
        return state, effects or _begin(state, reports)

    def transition(self, state: State, event: Event) -> Step:  # noqa: PLR0912
        """Return the next state and the effects to run; an illegal event changes nothing."""
        if isinstance(state.at, Finished):
            return state, ()
        state = _noted(state, event)
        match state.at, event:
            case Selecting(), ClientJoined():
                return self._select_if_enough(state)
            case Selecting(), StopRequested():
                return self._stop(state)
            case Reporting(reports), ClientJoined(client_id):
                return replace(state, at=Reporting(reports.regain(client_id))), ()
            case Reporting(), DeadlinePassed() if event == state.deadline:
                return self._close_reporting(state, "the --report-deadline passed")
            case Reporting() as at, _:
                reports = _answered(state, at, event)
                if reports is at.reports:
                    return state, ()
                after, effects = self._after_report(replace(state, at=Reporting(reports)))
                if isinstance(event, UpdateReceived):
                    effects = (KeepUpdate(event.client_id), *effects)
                return after, effects
            case Aggregating(reports), UpdatesRejected(client_ids, reason):
                reports = reports.reject(client_ids)
                state = replace(state, at=Aggregating(reports))
                if reports.has_quorum:
                    return state, (Aggregate(),)
                return self._no_quorum(state, reason)
            case Aggregating(), Aggregated(candidate):
                return self._evaluate_if_due(state, candidate)
            case Aggregating(), AggregationFailed(reason):
                return self._abandon(state, reason)
            case Evaluating() as at, ServerEvaluated():
                return _after_evaluation(state, replace(at, on_server=False))
            case Evaluating() as at, DeadlinePassed() if event == state.deadline:
                late = at.collect.lose(at.collect.clients)
                return _after_evaluation(state, replace(at, collect=late))
            case Evaluating() as at, _:
                collect = _answered(state, at, event)
                if collect is at.collect:
                    return state, ()
                return _after_evaluation(state, replace(at, collect=collect))
            case Committing(), Committed(stop_early):
                return self._next_round(state, stop_early)
        return state, ()

    def view(self, state: State) -> RunView:
        """Return what others see of a state."""
        reports = state.at.reports
        return RunView(
            rounds=self.policy.rounds,
            min_clients=self.policy.min_clients,
            phase=state.at.phase,
            round=state.round,
            attempt=state.attempt,
            live=state.live,
            cohort=reports.clients,
            goal=reports.goal,
            accepted=reports.got,
            lost=reports.lost,
            failed=reports.failed,
            collecting=isinstance(state.at, Collecting),
            stopping=state.stopping,
            failure=state.at.failure if isinstance(state.at, Finished) else None,
        )

    def _reports(
        self, cohort: tuple[str, ...], goal: int, got: frozenset[str] = frozenset()
    ) -> Collect:
        policy = self.policy
        return Collect.of(cohort, goal, quorum_of(policy, goal), policy.report_deadline, got)

    def _select_if_enough(self, state: State) -> Step:
        policy, live = self.policy, len(state.live)
        if live < policy.min_clients:
            return state, ()
        wanted = wanted_updates(live, policy.fraction, policy.min_cohort)
        size = cohort_size(wanted, policy.over_select, live)
        cohort = select_cohort(policy.seed, state.round, state.attempt, state.live, size)
        reports = self._reports(cohort, min(policy.report_goal or wanted, len(cohort)))
        state = replace(state, at=Reporting(reports))
        return state, _begin(state, reports)

    def _after_report(self, state: State) -> Step:
        reports = state.at.reports
        if reports.at_goal:
            return self._aggregate(state)
        if not reports.awaited:
            return self._close_reporting(state, "nobody is left to report")
        return state, ()

    def _close_reporting(self, state: State, why: str) -> Step:
        if state.at.reports.has_quorum:
            return self._aggregate(state)
        return self._no_quorum(state, why)

    def _aggregate(self, state: State) -> Step:
        return replace(state, at=Aggregating(state.at.reports)), (Aggregate(),)

    def _no_quorum(self, state: State, why: str) -> Step:
        got, quorum = len(state.at.reports.got), state.at.reports.quorum
        reason = f"{why}, with {got} of the {quorum} updates that a quorum needs"
        return self._abandon(state, reason)

    def _abandon(self, state: State, reason: str) -> Step:
        abandon = Abandon(state.round, state.attempt, reason)
        if state.attempt >= self.policy.max_attempts:
            failure = (
                f"round {state.round} was abandoned {state.attempt} times (--max-attempts); "
                f"the last time: {reason}"
            )
            return replace(state, at=Finished(state.at.reports, failure)), (abandon, Finish())
        if state.stopping:
            state, effects = self._stop(state)
        else:
            following = State(round=state.round, attempt=state.attempt + 1, live=state.live)
            state, effects = self._select_if_enough(following)
        return state, (abandon, *effects)

    def _stop(self, state: State) -> Step:
        """End the run by an operator's order; before the first commit, it has failed."""
        failure = None
        if state.round == 1:
            failure = (
                "an operator stopped the run before its first round was committed: "
                "no model was trained"
            )
        return replace(state, at=Finished(state.at.reports, failure)), (Finish(),)

    def _evaluate_if_due(self, state: State, candidate: object) -> Step:
        policy, reports = self.policy, state.at.reports
        last = state.round >= policy.rounds or state.stopping
        on_server = is_due(policy.evaluate_every, state.round, last)
        clients = frozenset[str]()
        if is_due(policy.client_evaluate_every, state.round, last):
            everyone = policy.evaluation_clients == "all"
            clients = state.live if everyone else reports.got & state.live
        if not on_server and not clients:
            return replace(state, at=Committing(reports, candidate)), (Commit(candidate),)
        collect = Collect.of(tuple(sorted(clients)), len(clients), 0, policy.report_deadline)
        state = replace(state, at=Evaluating(reports, collect, on_server, candidate))
        evaluate = Evaluate(on_server, collect.clients, candidate)
        return state, (evaluate, StartDeadline(collect.deadline, state.deadline))

    def _next_round(self, state: State, stop_early: bool) -> Step:
        if state.round >= self.policy.rounds or state.stopping or stop_early:
            return replace(state, at=Finished(state.at.reports)), (Finish(),)
        return self._select_if_enough(State(round=state.round + 1, live=state.live))


def _noted(state: State, event: Event) -> State:
    """Return the state with what an event means in every phase."""
    match event:
        case ClientJoined(client_id):
            return replace(state, live=state.live | {client_id})
        case ClientLeft(client_id):
            return replace(state, live=state.live - {client_id})
        case StopRequested():
            return replace(state, stopping=True)
    return state


def _answered(state: State, at: Collecting, event: Event) -> Collect:
    """Return what an event makes of the answers that a phase waits for."""
    match event:
        case ClientLeft(client_id):
            return at.collect.lose([client_id])
        case WorkFailed() if (event.round, event.attempt) == (state.round, state.attempt):
            return at.collect.fail(event.client_id)
        case UpdateReceived() | ClientEvaluated() if isinstance(event, at.answer):
            if (event.round, event.attempt) == (state.round, state.attempt):
                return at.collect.take(event.client_id)
    return at.collect


def _begin(state: State, reports: Collect) -> tuple[Effect, ...]:
    return (
        BeginRound(state.round, state.attempt),
        StartDeadline(reports.deadline, state.deadline),
    )


def _after_evaluation(state: State, at: Evaluating) -> Step:
    if at.on_server or at.collect.awaited:
        return replace(state, at=at), ()
    return replace(state, at=Committing(at.reports, at.candidate)), (Commit(at.candidate),)
