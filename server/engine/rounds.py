"""The round engine: (policy, state, event) -> (state, effects), and nothing else.

    phase        event                        next phase    effects
    SELECTING    ClientJoined                 SELECTING
                 ... enough live              REPORTING     BeginRound, StartDeadline
                 ClientLeft                   SELECTING
                 StopRequested                FINISHED      Finish
    REPORTING    ClientJoined, StopRequested  REPORTING
                 UpdateReceived               REPORTING     KeepUpdate, if it is wanted
                 ... at the goal              AGGREGATING   KeepUpdate, Aggregate
                 ... nobody left to report    as without a quorum, after KeepUpdate
                 ClientLeft, WorkFailed       REPORTING
                 ... nobody left to report    as at the deadline
                 DeadlinePassed               as at the deadline
    AGGREGATING  ClientJoined, ClientLeft,
                 StopRequested                AGGREGATING
                 UpdatesRejected              AGGREGATING
                 ... no quorum without them   as without a quorum
                 Aggregated                   EVALUATING    Evaluate, StartDeadline
                 ... nothing to evaluate      COMMITTING    Commit
                 AggregationFailed            as without a quorum
    EVALUATING   ClientJoined, StopRequested  EVALUATING
                 ServerEvaluated,
                 ClientEvaluated, ClientLeft,
                 WorkFailed, DeadlinePassed   EVALUATING
                 ... nobody left to wait for  COMMITTING    Commit
    COMMITTING   ClientJoined, ClientLeft,
                 StopRequested                COMMITTING
                 Committed                    SELECTING     and the next round
                 ... enough live              REPORTING     BeginRound, StartDeadline
                 ... the last round           FINISHED      Finish

    at the deadline     a quorum is in        AGGREGATING   Aggregate
                        ... else              as without a quorum
    without a quorum    another attempt       SELECTING     Abandon
                        ... enough live       REPORTING     Abandon, BeginRound, StartDeadline
                        ... the last attempt,
                        or the run is to stop FINISHED      Abandon, Finish

After StopRequested the current round is the last one. A run that ends by it before its first
round is committed has failed. A deadline ends the wait for clients, not for the server's own
evaluation.

Any other (phase, event) pair changes nothing; an update that is not answered with KeepUpdate is
not wanted. Knows no clock, socket, file or random source: time arrives inside events and timers
are effects.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from server.engine.cohort import cohort_size, select_cohort, wanted_updates


class Phase(Enum):
    """Where a round stands; FINISHED is the whole run's end."""

    SELECTING = "selecting"
    REPORTING = "reporting"
    AGGREGATING = "aggregating"
    EVALUATING = "evaluating"
    COMMITTING = "committing"
    FINISHED = "finished"


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


@dataclass(frozen=True, kw_only=True)
class State:
    """All that the engine remembers between two events."""

    phase: Phase = Phase.SELECTING
    round: int = 1
    attempt: int = 1
    live: frozenset[str] = frozenset()
    cohort: tuple[str, ...] = ()
    goal: int = 0
    accepted: frozenset[str] = frozenset()
    # Of the cohort: gone (they may come back), and failed or refused (they may not).
    lost: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    server_evaluating: bool = False
    evaluating: frozenset[str] = frozenset()
    stopping: bool = False
    failure: str | None = None

    @property
    def pending(self) -> frozenset[str]:
        """The clients of the cohort that may still report."""
        return frozenset(self.cohort) - self.accepted - self.lost - self.failed


@dataclass(frozen=True)
class ClientJoined:
    """A client has a session, new or again."""

    client_id: str


@dataclass(frozen=True)
class ClientLeft:
    """A client's session ended: it said so, or its lease ran out."""

    client_id: str


@dataclass(frozen=True)
class UpdateReceived:
    """A valid update lies on the disk; whether it counts is decided now."""

    round: int
    attempt: int
    client_id: str


@dataclass(frozen=True)
class WorkFailed:
    """A client's training or evaluation failed, or its update was refused as invalid."""

    round: int
    attempt: int
    client_id: str


@dataclass(frozen=True)
class DeadlinePassed:
    """The time for `phase` of this attempt is over."""

    round: int
    attempt: int
    phase: Phase


@dataclass(frozen=True)
class UpdatesRejected:
    """Accepted updates that are left out of the mean, and why: what they are by count."""

    clients: frozenset[str]
    reason: str


@dataclass(frozen=True)
class Aggregated:
    """The candidate model is ready."""


@dataclass(frozen=True)
class AggregationFailed:
    """The accepted updates make no model: a value overflows, or the strategy needs others."""

    reason: str


@dataclass(frozen=True)
class ServerEvaluated:
    """The server's own evaluation of the candidate is in."""


@dataclass(frozen=True)
class ClientEvaluated:
    """A client's evaluation of the candidate is in."""

    round: int
    attempt: int
    client_id: str


@dataclass(frozen=True)
class Committed:
    """The round is durable; `stop_early`: its result is reason to end the run."""

    stop_early: bool


@dataclass(frozen=True)
class StopRequested:
    """An operator wants the current round to be the last."""


Event = (
    ClientJoined
    | ClientLeft
    | UpdateReceived
    | WorkFailed
    | DeadlinePassed
    | UpdatesRejected
    | Aggregated
    | AggregationFailed
    | ServerEvaluated
    | ClientEvaluated
    | Committed
    | StopRequested
)


@dataclass(frozen=True)
class BeginRound:
    """Make the cohort durable, then give it training work; void if a newer attempt began."""

    round: int
    attempt: int


@dataclass(frozen=True)
class StartDeadline:
    """Answer with DeadlinePassed after so many seconds; it replaces the deadline before."""

    seconds: float
    event: DeadlinePassed


@dataclass(frozen=True)
class KeepUpdate:
    """The update counts: record it as accepted."""

    client_id: str


@dataclass(frozen=True)
class Aggregate:
    """Fold the accepted updates into a candidate model; answer with how that went."""


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the candidate, here and on the clients; answer with each one's event."""

    on_server: bool
    clients: tuple[str, ...]


@dataclass(frozen=True)
class Commit:
    """Make the candidate the run's model, durably; answer with Committed."""


@dataclass(frozen=True)
class Abandon:
    """Drop the attempt's updates and assignments; the model is unchanged."""

    round: int
    attempt: int
    reason: str


@dataclass(frozen=True)
class Finish:
    """End the run; `state.failure` says whether it failed."""


Effect = BeginRound | StartDeadline | KeepUpdate | Aggregate | Evaluate | Commit | Abandon | Finish
Step = tuple[State, tuple[Effect, ...]]


def is_due(every: int, round_number: int, last: bool) -> bool:
    """Say whether something done every `every` rounds (0: never) and in the last is due."""
    return every > 0 and (last or round_number % every == 0)


def quorum_of(policy: Policy, goal: int) -> int:
    """Return the updates that suffice at the deadline: as configured, else half the goal."""
    return min(goal, policy.quorum) if policy.quorum else (goal + 1) // 2


def transition(policy: Policy, state: State, event: Event) -> Step:  # noqa: PLR0912
    """Return the next state and the effects to run, in order; an illegal event changes nothing."""
    match state.phase, event:
        case Phase.FINISHED, _:
            return state, ()
        case Phase.SELECTING, ClientJoined(client_id):
            return _select_if_enough(policy, _with(state, client_id))
        case Phase.SELECTING, StopRequested():
            return stopped(state), (Finish(),)
        case Phase.REPORTING, ClientJoined(client_id):
            return replace(_with(state, client_id), lost=state.lost - {client_id}), ()
        case Phase.REPORTING, ClientLeft(client_id):
            return _lose(policy, _without(state, client_id), client_id)
        case Phase.REPORTING, UpdateReceived(_, _, client_id) as update:
            return _receive(policy, state, update)
        case Phase.REPORTING, WorkFailed() as failed:
            return _fail(policy, state, failed)
        case Phase.REPORTING, DeadlinePassed() as deadline:
            if deadline != _deadline_of(state):
                return state, ()
            return _close_reporting(policy, state, "the --report-deadline passed")
        case Phase.AGGREGATING, UpdatesRejected() as rejected:
            return _reject(policy, state, rejected)
        case Phase.AGGREGATING, Aggregated():
            return _evaluate_if_due(policy, state)
        case Phase.AGGREGATING, AggregationFailed(reason):
            return _abandon(policy, state, reason)
        case Phase.EVALUATING, ClientLeft(client_id):
            return _after_evaluation(_evaluated_by(_without(state, client_id), client_id))
        case Phase.EVALUATING, ServerEvaluated():
            return _after_evaluation(replace(state, server_evaluating=False))
        case Phase.EVALUATING, (ClientEvaluated(_, _, client_id) | WorkFailed(_, _, client_id)):
            if not _is_current(state, event):
                return state, ()
            return _after_evaluation(_evaluated_by(state, client_id))
        case Phase.EVALUATING, DeadlinePassed() as deadline:
            if deadline != _deadline_of(state):
                return state, ()
            return _after_evaluation(replace(state, evaluating=frozenset()))
        case Phase.COMMITTING, Committed(stop_early):
            return _next_round(policy, state, stop_early)
        case _, ClientJoined(client_id):
            return _with(state, client_id), ()
        case _, ClientLeft(client_id):
            return _without(state, client_id), ()
        case _, StopRequested():
            return replace(state, stopping=True), ()
    return state, ()


def resume(policy: Policy, state: State) -> Step:
    """Begin, or go on: what to do first with the state that a run directory gave back.

    In SELECTING that is a selection if enough clients are awaited; in REPORTING the cohort
    gets its work again, or its updates are already enough. In FINISHED there is only the end.
    """
    if state.phase is Phase.FINISHED:
        return state, (Finish(),)
    if state.phase is Phase.SELECTING:
        return _select_if_enough(policy, state)
    state, effects = _after_report(policy, state)
    if state.phase is Phase.REPORTING:
        return state, (
            BeginRound(state.round, state.attempt),
            _start_deadline(policy, state),
            *effects,
        )
    return state, effects


def stopped(state: State) -> State:
    """Return the end by an operator's order, between rounds; before the first, the run failed."""
    failure = None
    if state.round == 1:
        failure = (
            "an operator stopped the run before its first round was committed: no model was trained"
        )
    return replace(state, phase=Phase.FINISHED, stopping=True, failure=failure)


def _with(state: State, client_id: str) -> State:
    return replace(state, live=state.live | {client_id})


def _without(state: State, client_id: str) -> State:
    return replace(state, live=state.live - {client_id})


def _deadline_of(state: State) -> DeadlinePassed:
    return DeadlinePassed(state.round, state.attempt, state.phase)


def _start_deadline(policy: Policy, state: State) -> StartDeadline:
    return StartDeadline(policy.report_deadline, _deadline_of(state))


def _is_current(state: State, event: Event) -> bool:
    match event:
        case UpdateReceived(number, attempt) | WorkFailed(number, attempt):
            return (number, attempt) == (state.round, state.attempt)
        case ClientEvaluated(number, attempt):
            return (number, attempt) == (state.round, state.attempt)
    return False


def _select_if_enough(policy: Policy, state: State) -> Step:
    if len(state.live) < policy.min_clients:
        return state, ()
    wanted = wanted_updates(len(state.live), policy.fraction, policy.min_cohort)
    size = cohort_size(wanted, policy.over_select, len(state.live))
    cohort = select_cohort(policy.seed, state.round, state.attempt, state.live, size)
    state = replace(
        state,
        phase=Phase.REPORTING,
        cohort=cohort,
        goal=min(policy.report_goal or wanted, len(cohort)),
    )
    return state, (BeginRound(state.round, state.attempt), _start_deadline(policy, state))


def _after_report(policy: Policy, state: State) -> Step:
    if len(state.accepted) >= state.goal:
        return replace(state, phase=Phase.AGGREGATING), (Aggregate(),)
    if not state.pending:
        return _close_reporting(policy, state, "nobody is left to report")
    return state, ()


def _close_reporting(policy: Policy, state: State, why: str) -> Step:
    if len(state.accepted) >= quorum_of(policy, state.goal):
        return replace(state, phase=Phase.AGGREGATING), (Aggregate(),)
    return _abandon_without_quorum(policy, state, why)


def _reject(policy: Policy, state: State, event: UpdatesRejected) -> Step:
    accepted, failed = state.accepted - event.clients, state.failed | event.clients
    state = replace(state, accepted=accepted, failed=failed)
    if len(accepted) >= quorum_of(policy, state.goal):
        return state, ()
    return _abandon_without_quorum(policy, state, event.reason)


def _abandon_without_quorum(policy: Policy, state: State, why: str) -> Step:
    quorum = quorum_of(policy, state.goal)
    reason = f"{why}, with {len(state.accepted)} of the {quorum} updates that a quorum needs"
    return _abandon(policy, state, reason)


def _abandon(policy: Policy, state: State, reason: str) -> Step:
    abandon = Abandon(state.round, state.attempt, reason)
    if state.attempt >= policy.max_attempts:
        failure = (
            f"round {state.round} was abandoned {state.attempt} times (--max-attempts); "
            f"the last time: {reason}"
        )
        return replace(state, phase=Phase.FINISHED, failure=failure), (abandon, Finish())
    if state.stopping:
        return stopped(state), (abandon, Finish())
    next_attempt = State(round=state.round, attempt=state.attempt + 1, live=state.live)
    state, effects = _select_if_enough(policy, next_attempt)
    return state, (abandon, *effects)


def _lose(policy: Policy, state: State, client_id: str) -> Step:
    if client_id not in state.pending:
        return state, ()
    return _after_report(policy, replace(state, lost=state.lost | {client_id}))


def _fail(policy: Policy, state: State, event: WorkFailed) -> Step:
    client_id = event.client_id
    if not _is_current(state, event) or client_id not in state.pending | state.lost:
        return state, ()
    failed, lost = state.failed | {client_id}, state.lost - {client_id}
    return _after_report(policy, replace(state, failed=failed, lost=lost))


def _receive(policy: Policy, state: State, update: UpdateReceived) -> Step:
    # One whose lease ran out in the meantime has delivered all the same.
    candidates = state.pending | state.lost
    if not _is_current(state, update) or update.client_id not in candidates:
        return state, ()
    state = replace(
        state,
        accepted=state.accepted | {update.client_id},
        lost=state.lost - {update.client_id},
    )
    state, effects = _after_report(policy, state)
    return state, (KeepUpdate(update.client_id), *effects)


def _evaluate_if_due(policy: Policy, state: State) -> Step:
    last = state.round >= policy.rounds or state.stopping
    on_server = is_due(policy.evaluate_every, state.round, last)
    due = is_due(policy.client_evaluate_every, state.round, last)
    clients = frozenset[str]()
    if due:
        everyone = policy.evaluation_clients == "all"
        clients = state.live if everyone else state.accepted & state.live
    if not on_server and not clients:
        return replace(state, phase=Phase.COMMITTING), (Commit(),)
    state = replace(state, phase=Phase.EVALUATING, server_evaluating=on_server, evaluating=clients)
    evaluate = Evaluate(on_server, tuple(sorted(clients)))
    return state, (evaluate, _start_deadline(policy, state))


def _evaluated_by(state: State, client_id: str) -> State:
    return replace(state, evaluating=state.evaluating - {client_id})


def _after_evaluation(state: State) -> Step:
    if state.server_evaluating or state.evaluating:
        return state, ()
    return replace(state, phase=Phase.COMMITTING), (Commit(),)


def _next_round(policy: Policy, state: State, stop_early: bool) -> Step:
    if state.round >= policy.rounds or state.stopping or stop_early:
        return replace(state, phase=Phase.FINISHED), (Finish(),)
    return _select_if_enough(policy, State(round=state.round + 1, live=state.live))
