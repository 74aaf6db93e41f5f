"""What happens to a run, and what is to be done about it: the words that engines speak.

Events arrive from the shell, effects go back to it.
"""

from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """Where a round stands; FINISHED is the whole run's end."""

    SELECTING = "selecting"
    REPORTING = "reporting"
    AGGREGATING = "aggregating"
    EVALUATING = "evaluating"
    COMMITTING = "committing"
    FINISHED = "finished"


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
    """The candidate model is ready; what it is, the engine only passes on."""

    candidate: object = None


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
    candidate: object = None


@dataclass(frozen=True)
class Commit:
    """Make the candidate the run's model, durably; answer with Committed."""

    candidate: object = None


@dataclass(frozen=True)
class Abandon:
    """Drop the attempt's updates and assignments; the model is unchanged."""

    round: int
    attempt: int
    reason: str


@dataclass(frozen=True)
class Finish:
    """End the run; the view's `failure` says whether it failed."""


Effect = BeginRound | StartDeadline | KeepUpdate | Aggregate | Evaluate | Commit | Abandon | Finish
