"""The trace of the round in progress, if the run is traced."""

from common import tracing
from server.engine.engine import RunView
from server.run.ledger import RoundSummary


class RoundTrace:
    """One trace after the other, each from a round's begin to its end."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._trace = tracing.OFF

    @property
    def parent(self) -> str:
        """What spans of the round name as their parent; empty: it is not traced."""
        return self._trace.traceparent

    def begin(self, view: RunView) -> None:
        """Begin the trace of an attempt."""
        self._trace = tracing.trace(
            "round",
            run=self._run_id,
            round=view.round,
            attempt=view.attempt,
            cohort=len(view.cohort),
            goal=view.goal,
        )

    def span(self, name: str) -> tracing.Span:
        """Return a part of it."""
        return tracing.span(name, self.parent)

    def end(self, ended: RoundSummary) -> None:
        """End it with what came of the attempt."""
        self._trace.note(
            outcome=ended.phase,
            accepted=ended.accepted,
            refused=ended.refused,
            dropped=ended.dropped,
        )
        self._trace.end()
        self._trace = tracing.OFF

    def interrupt(self) -> None:
        """End it, because the server goes."""
        self._trace.note(outcome="interrupted")
        self._trace.end()
