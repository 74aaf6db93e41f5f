"""Who is to do what: the open assignments of the current attempt, by client and by token.

Knows nothing about sessions, files or gRPC.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum


class Work(Enum):
    """What an assignment asks for."""

    TRAIN = "train"
    EVALUATE = "evaluate"


@dataclass(frozen=True)
class Assignment:
    """One client's work in one attempt of a round, on one version of the model."""

    task_token: str
    client_id: str
    round: int
    attempt: int
    work: Work
    model_version: int
    # Of the round; empty: not traced.
    traceparent: str = ""


def task_token(run_id: str, round_number: int, attempt: int, client_id: str, work: Work) -> str:
    """Return the assignment's token: 32 hexadecimal digits, the same after a restart."""
    name = "\0".join((run_id, str(round_number), str(attempt), client_id, work.value))
    return hashlib.sha256(name.encode()).hexdigest()[:32]


class Assignments:
    """The assignments that are open now, and those answered in this attempt and the one before.

    Args:
        on_change: told a client id and the work that it has from now on; None is none.
    """

    def __init__(self, on_change: Callable[[str, Work | None], None] = lambda *_: None) -> None:
        self._on_change = on_change
        self._by_client: dict[str, Assignment] = {}
        self._by_token: dict[str, Assignment] = {}
        self._attempt = (0, 0)
        # Clients by token. An answer may end the attempt, and its response be lost.
        self._finished: dict[str, str] = {}
        self._finished_before: dict[str, str] = {}

    def replace(self, assignments: Iterable[Assignment]) -> None:
        """Close all assignments and open these, which are of one attempt."""
        before, self._by_client = self._by_client, {a.client_id: a for a in assignments}
        self._by_token = {a.task_token: a for a in self._by_client.values()}
        for client_id in before.keys() - self._by_client.keys():
            self._on_change(client_id, None)
        for opened in self._by_client.values():
            self._on_change(opened.client_id, opened.work)
            if (opened.round, opened.attempt) != self._attempt:
                self._attempt = (opened.round, opened.attempt)
                self._finished_before, self._finished = self._finished, {}

    def of_client(self, client_id: str) -> Assignment | None:
        """Return a client's open assignment."""
        return self._by_client.get(client_id)

    def find(self, token: str, client_id: str) -> Assignment | None:
        """Return the open assignment with this token, if it is this client's."""
        assignment = self._by_token.get(token)
        return assignment if assignment and assignment.client_id == client_id else None

    def finish(self, token: str) -> None:
        """Close one assignment; an unknown one is fine."""
        assignment = self._by_token.pop(token, None)
        if assignment is not None:
            del self._by_client[assignment.client_id]
            self._finished[token] = assignment.client_id
            self._on_change(assignment.client_id, None)

    def was_finished(self, token: str, client_id: str) -> bool:
        """Say whether this client's assignment was answered in this attempt or the one before."""
        return client_id in (self._finished.get(token), self._finished_before.get(token))
