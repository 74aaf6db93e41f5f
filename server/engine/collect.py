"""Who was asked, whose answer is in, and who will bring none: counted once, for every phase.

A phase that waits for clients holds a `Collect`; it says when the wait is over.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Collect:
    """The answers of some clients; `of` begins one.

    Args:
        clients: who was asked, in client_id order.
        goal: the answers that end the wait.
        quorum: the answers that suffice when it ends otherwise.
        deadline: seconds that it may take.
        awaited: who may still answer.
        got: whose answer is in.
        lost: who is gone; their answer still counts if it comes.
        failed: whose answer will not come, or does not count.
    """

    clients: tuple[str, ...] = ()
    goal: int = 0
    quorum: int = 0
    deadline: float = 0.0
    awaited: frozenset[str] = frozenset()
    got: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        clients: tuple[str, ...],
        goal: int,
        quorum: int,
        deadline: float,
        got: frozenset[str] = frozenset(),
    ) -> "Collect":
        """Ask clients, of whom some have answered before."""
        awaited = frozenset(clients) - got
        return cls(
            clients=clients, goal=goal, quorum=quorum, deadline=deadline, awaited=awaited, got=got
        )

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
        one = self._open(client_id)
        if not one:
            return self
        awaited, lost = self.awaited - one, self.lost - one
        return replace(self, awaited=awaited, lost=lost, got=self.got | one)

    def fail(self, client_id: str) -> "Collect":
        """Wait no more for a client that can't answer."""
        one = self._open(client_id)
        if not one:
            return self
        awaited, lost = self.awaited - one, self.lost - one
        return replace(self, awaited=awaited, lost=lost, failed=self.failed | one)

    def lose(self, client_ids: Iterable[str]) -> "Collect":
        """Wait no more for clients that are gone."""
        gone = self.awaited.intersection(client_ids)
        if not gone:
            return self
        return replace(self, awaited=self.awaited - gone, lost=self.lost | gone)

    def regain(self, client_id: str) -> "Collect":
        """Wait again for a client that came back."""
        one = self.lost & {client_id}
        if not one:
            return self
        return replace(self, awaited=self.awaited | one, lost=self.lost - one)

    def reject(self, client_ids: frozenset[str]) -> "Collect":
        """Count answers no more that were in."""
        return replace(self, got=self.got - client_ids, failed=self.failed | client_ids)

    def _open(self, client_id: str) -> frozenset[str]:
        """Return the client if its answer would count."""
        is_open = client_id in self.awaited or client_id in self.lost
        return frozenset([client_id] if is_open else [])
