"""The clients of a run as operators see them: what each one does, and for how long.

Pure: looks at what others know, and remembers nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from server.engine.engine import RunView
from server.run.ledger import RoundLedger
from server.run.sessions import Activity, Session, Sessions
from server.run.uploads import StoredUpdate


@dataclass(frozen=True, kw_only=True)
class ClientSummary:
    """One client; `state` is an Activity's name, or DONE, FAILED or LOST."""

    client_id: str
    partition: int | None
    state: str
    seconds: float
    num_examples: int | None
    train_loss: float | None
    bytes_down: int
    bytes_up: int


class Roster:
    """The live clients and those of the current cohort, at one moment.

    Args:
        view: of the run.
        sessions: who is there.
        ledger: the current attempt's.
        updates: the accepted ones by client id.
        now: the clock.
    """

    def __init__(
        self,
        view: RunView,
        sessions: Sessions,
        ledger: RoundLedger,
        updates: Mapping[str, StoredUpdate],
        now: float,
    ) -> None:
        self._view = view
        self._sessions = sessions.by_client
        self._ledger = ledger
        self._updates = updates
        self._now = now
        self.client_ids = sorted({*self._sessions, *sessions.awaited, *view.cohort})

    def summary(self, client_id: str) -> ClientSummary:
        """Return what is known of one of them."""
        ledger, session = self._ledger, self._sessions.get(client_id)
        examples, metrics = self._trained(client_id, session)
        since = session.since if session else ledger.left.get(client_id, ledger.began)
        return ClientSummary(
            client_id=client_id,
            partition=session.partition if session else ledger.partitions.get(client_id),
            state=self._state_of(client_id, session),
            seconds=max(0.0, self._now - since),
            num_examples=examples,
            train_loss=metrics.get("loss"),
            bytes_down=ledger.bytes_down.get(client_id, 0),
            bytes_up=ledger.bytes_up.get(client_id, 0),
        )

    def _state_of(self, client_id: str, session: Session | None) -> str:
        if session is not None and session.activity is not Activity.WAITING:
            return session.activity.name
        if client_id in self._view.accepted:
            return "DONE"
        if client_id in self._view.failed:
            return "FAILED"
        return "LOST" if session is None else "WAITING"

    def _trained(
        self, client_id: str, session: Session | None
    ) -> tuple[int | None, Mapping[str, float]]:
        update = self._updates.get(client_id)
        if update is not None:
            return update.num_examples, update.metrics
        return session.trained if session and session.trained else (None, {})
