"""What an engine is: three pure functions between the shell and the rules of a run."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

from server.engine.events import Effect, Event, Phase

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a run directory gives back.

    Args:
        round: the one to go on with, or the last one of a run that has ended.
        live: the clients of before, which may come again.
        cohort: of the attempt that was under way; empty: there was none.
        goal: of that attempt.
        accepted: the clients whose update is durable.
        stopping: an operator wants the current round to be the last.
    """

    round: int
    attempt: int = 1
    live: frozenset[str] = frozenset()
    cohort: tuple[str, ...] = ()
    goal: int = 0
    accepted: frozenset[str] = frozenset()
    stopping: bool = False
    ended: bool = False


@dataclass(frozen=True, kw_only=True)
class RunView:
    """Where a run stands: all that anyone but the engine sees of its state.

    Args:
        rounds: of the whole run, if it does not end early.
        min_clients: needed to begin a round.
        goal: updates wanted of the cohort.
        lost: of the cohort, who is gone; they may come back.
        failed: of the cohort, whose work failed or whose update was refused.
        collecting: clients are waited for, until a deadline.
        failure: why the run failed; None unless it did.
    """

    rounds: int = 0
    min_clients: int = 0
    phase: Phase = Phase.SELECTING
    round: int = 1
    attempt: int = 1
    live: frozenset[str] = frozenset()
    cohort: tuple[str, ...] = ()
    goal: int = 0
    accepted: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    collecting: bool = False
    stopping: bool = False
    failure: str | None = None

    @property
    def pending(self) -> frozenset[str]:
        """The clients of the cohort that may still report."""
        return frozenset(self.cohort) - self.accepted - self.lost - self.failed


class Engine(Protocol[S]):
    """The rules of a run; its state S is nobody else's business."""

    def resume(self, standing: Standing) -> tuple[S, tuple[Effect, ...]]:
        """Begin, or go on: return the first state, and what to do first."""

    def transition(self, state: S, event: Event) -> tuple[S, tuple[Effect, ...]]:
        """Return the next state and the effects to run, in order."""

    def view(self, state: S) -> RunView:
        """Return what others see of a state."""
