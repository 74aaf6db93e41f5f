"""What observers are shown of a run: where it stands, what has happened, and when that changes."""

import asyncio
from collections.abc import Iterable

from common.logs import Logger
from server.engine.engine import RunView
from server.engine.events import Phase
from server.run.ledger import RoundLedger, RoundSummary


class RunStatus:
    """A run as it is now; the coordinator keeps it up to date, anyone may read it.

    Args:
        view: where it stands.
        ledger: what happens in the current attempt.
        history: the rounds so far, and the attempts that were abandoned by this process.
        log: of the run, or of its current attempt.
    """

    def __init__(
        self,
        view: RunView,
        ledger: RoundLedger,
        history: Iterable[RoundSummary],
        log: Logger,
    ) -> None:
        self.view = view
        self.ledger = ledger
        self.history = list(history)
        self.log = log
        self.revision = 1
        self.ended = False
        self.shutting_down = False
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Let those who wait know that something has changed."""
        self.revision += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait_for_change(self, revision: int, seconds: float) -> None:
        """Return once the run is newer than `revision`, or after so many seconds."""
        if self.revision > revision:
            return
        changed = self._changed
        try:
            await asyncio.wait_for(changed.wait(), seconds)
        except TimeoutError:
            return

    def current_round(self) -> RoundSummary:
        """Return the attempt in progress, or the last round when the run has ended."""
        if self.view.phase is not Phase.FINISHED:
            return self.ledger.summary(self.view, self.view.phase.value)
        if self.history:
            return self.history[-1]
        return self.ledger.summary(self.view, Phase.SELECTING.value)
