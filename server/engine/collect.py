"""Who was asked, whose answer is in, and who will bring none: counted once, for every phase.

A phase that waits for clients holds a `Collect`; it says when the wait is over.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Collect:
    """The answers of some clients.

    Args:
        clients: who was asked, in client_id order.
        goal: the answers that end the wait.
        quorum: the answers that suffice when it ends otherwise.
        deadline: seconds that it may take.
        got: whose answer is in.
        lost: who is gone; their answer still counts if it comes.
        failed: whose answer will not come, or does not count.
    """

    clients: tuple[str, ...] = ()
    goal: int = 0
    quorum: int = 0
    deadline: float = 0.0
    got: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()

    @property
    def awaited(self) -> frozenset[str]:
        """The clients that may still answer."""
        return frozenset(self.clients) - self.got - self.lost - self.failed

    @property
    def at_goal(self) -> bool:
        """Whether as many answers are in as were wanted."""
        return len(self.got) >= self.goal

    @property
    def has_quorum(self) -> bool:
        """Whether the answers that are in suffice."""
        return len(self.got) >= self.quorum

    def take(self, client_id: str) -> "Collect":
        """Count an answer; one that is not waited for changes nothing, here and below."""
        if client_id not in self.awaited | self.lost:
            return self
        return replace(self, got=self.got | {client_id}, lost=self.lost - {client_id})

    def fail(self, client_id: str) -> "Collect":
        """Wait no more for a client that can't answer."""
        if client_id not in self.awaited | self.lost:
            return self
        return replace(self, failed=self.failed | {client_id}, lost=self.lost - {client_id})

    def lose(self, client_ids: Iterable[str]) -> "Collect":
        """Wait no more for clients that are gone."""
        lost = self.awaited & frozenset(client_ids)
        return replace(self, lost=self.lost | lost) if lost else self

    def regain(self, client_id: str) -> "Collect":
        """Wait again for a client that came back."""
        return replace(self, lost=self.lost - {client_id}) if client_id in self.lost else self

    def reject(self, client_ids: frozenset[str]) -> "Collect":
        """Count answers no more that were in."""
        return replace(self, got=self.got - client_ids, failed=self.failed | client_ids)
