"""Who is there: sessions, their leases, and the polls that wait on them.

Time comes from a clock that is passed in. Knows nothing about rounds or gRPC.
"""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from common.errors import RequestError, Status
from common.training import Metrics
from server.run.limits import MAX_PULLS

# Superseded sessions that are remembered, so that their processes are told to end.
_TOMBSTONES = 10_000


class Activity(Enum):
    """What a client does: the work that it has, and what it transfers of it."""

    WAITING = "waiting"
    PULLING = "pulling"
    TRAINING = "training"
    PUSHING = "pushing"
    EVALUATING = "evaluating"


@dataclass(eq=False)
class Session:
    """One client process's lease."""

    token: str
    client_id: str
    instance_id: str
    partition: int
    expires: float
    clock: Callable[[], float] = field(repr=False)
    # When `activity` was last another one.
    since: float
    # Beside its transfers.
    turned_to: Activity = Activity.WAITING
    # num_examples and metrics of its last accepted update.
    trained: tuple[int, Metrics] | None = None
    # The newest poll's number, and what wakes it while it waits.
    polls: int = 0
    waiter: asyncio.Future[None] | None = field(default=None, repr=False)
    pulls: int = 0
    pushes: int = 0
    # The BLAKE3 digest of what was pulled last, and how far.
    pulled: tuple[str, int] = ("", 0)

    @property
    def activity(self) -> Activity:
        """What the client does now."""
        if self.pulls:
            return Activity.PULLING
        return Activity.PUSHING if self.pushes else self.turned_to

    def turn_to(self, activity: Activity) -> None:
        """Learn what the client does from now on, beside its transfers."""
        if activity is not self.turned_to:
            self.turned_to, self.since = activity, self.clock()

    def wake(self) -> None:
        """Let the waiting poll look again."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    @contextmanager
    def pulling(self) -> Iterator[None]:
        """Count a model that is being pulled.

        Raises:
            RequestError: PULLS_EXCEEDED.
        """
        if self.pulls >= MAX_PULLS:
            message = f"{MAX_PULLS} pulls of this session are still open; end one"
            raise RequestError(Status.RESOURCE_EXHAUSTED, "PULLS_EXCEEDED", message)
        self._count(pulls=1)
        try:
            yield
        finally:
            self._count(pulls=-1)

    @contextmanager
    def pushing(self) -> Iterator[None]:
        """Count an update that is being pushed."""
        self._count(pushes=1)
        try:
            yield
        finally:
            self._count(pushes=-1)

    def _count(self, pulls: int = 0, pushes: int = 0) -> None:
        before = self.activity
        self.pulls += pulls
        self.pushes += pushes
        if self.activity is not before:
            self.since = self.clock()

    async def wait(self, seconds: float) -> None:
        """Wait until woken, or for so many seconds."""
        waiter = asyncio.get_running_loop().create_future()
        self.waiter = waiter
        try:
            await asyncio.wait_for(waiter, seconds)
        except TimeoutError:
            pass
        finally:
            if self.waiter is waiter:
                self.waiter = None


def check_identity(client_id: str, allowed: Container[str]) -> None:
    """Check that a caller may act for a client.

    Raises:
        RequestError: IDENTITY_MISMATCH.
    """
    if client_id not in allowed:
        message = f"the caller's certificate is not that of client {client_id!r}"
        raise RequestError(Status.PERMISSION_DENIED, "IDENTITY_MISMATCH", message)


class Sessions:
    """All sessions of a run, by token and by client id.

    Args:
        lease: seconds without a sign of life after which a session ends.
        clock: seconds, never going back.
        on_joined, on_left: told the client id when a client comes and when it is gone;
            a client that is superseded by itself does neither.
        most: sessions at a time.
    """

    def __init__(
        self,
        lease: float,
        clock: Callable[[], float],
        on_joined: Callable[[str], None],
        on_left: Callable[[str], None],
        most: int,
    ) -> None:
        self.lease = lease
        self._most = most
        self._clock = clock
        self._on_joined = on_joined
        self._on_left = on_left
        self._by_token: dict[str, Session] = {}
        self._by_client: dict[str, Session] = {}
        self._by_partition: defaultdict[int, set[str]] = defaultdict(set)
        self._superseded: dict[str, None] = {}
        # Clients of before a restart, and until when they count as live.
        self._awaited: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._by_token)

    @property
    def by_client(self) -> Mapping[str, Session]:
        """The sessions by client id."""
        return self._by_client

    @property
    def awaited(self) -> frozenset[str]:
        """The clients of before a restart that have not come again, while they count as live."""
        return frozenset(self._awaited)

    def await_no_more(self, client_id: str) -> None:
        """Learn that a client of before a restart knows that the run has ended."""
        self._awaited.pop(client_id, None)

    def await_clients(self, client_ids: Iterable[str]) -> None:
        """Count clients as live for one lease, although they have no session yet."""
        until = self._clock() + self.lease
        self._awaited = dict.fromkeys(client_ids, until)

    def join(self, client_id: str, instance_id: str, partition: int = 0) -> Session:
        """Return the instance's session, a new one if it has none; the newest instance wins.

        Raises:
            RequestError: CLIENTS_FULL.
        """
        older = self._by_client.get(client_id)
        if older is not None and older.instance_id == instance_id:
            return self._renew(older)
        if older is None and len(self) >= self._most:
            message = f"as many clients are here as this server's --max-clients, {self._most}"
            raise RequestError(Status.RESOURCE_EXHAUSTED, "CLIENTS_FULL", message, self.lease)
        if older is not None:
            del self._by_token[older.token]
            self._by_partition[older.partition].discard(client_id)
            self._superseded[older.token] = None
            if len(self._superseded) > _TOMBSTONES:
                del self._superseded[next(iter(self._superseded))]
            older.wake()
        token, clock = secrets.token_urlsafe(24), self._clock
        session = Session(token, client_id, instance_id, partition, 0.0, clock, clock())
        if older is not None:
            session.turned_to, session.since = older.turned_to, older.since
        self._by_token[session.token] = self._by_client[client_id] = self._renew(session)
        self._by_partition[partition].add(client_id)
        self._awaited.pop(client_id, None)
        if older is None:
            self._on_joined(client_id)
        return session

    def get(self, token: str, allowed: Container[str]) -> Session:
        """Return a session and renew its lease.

        Args:
            token: the session's.
            allowed: the client ids that the caller may act for.

        Raises:
            RequestError: SESSION_UNKNOWN, SESSION_SUPERSEDED or IDENTITY_MISMATCH.
        """
        session = self._by_token.get(token)
        if session is not None:
            check_identity(session.client_id, allowed)
            return self._renew(session)
        if token in self._superseded:
            raise RequestError(
                Status.ABORTED,
                "SESSION_SUPERSEDED",
                "another process has joined under this client id",
            )
        raise RequestError(
            Status.NOT_FOUND, "SESSION_UNKNOWN", "the session has expired or never was; join again"
        )

    def holders(self, partition: int) -> list[str]:
        """Return the clients with a session that hold a partition, in client_id order."""
        return sorted(self._by_partition[partition])

    def leave(self, token: str, allowed: Container[str]) -> None:
        """End a session; an unknown one is fine.

        Raises:
            RequestError: IDENTITY_MISMATCH.
        """
        session = self._by_token.get(token)
        if session is not None:
            check_identity(session.client_id, allowed)
            self._end(session)

    def expel(self, client_ids: Iterable[str]) -> None:
        """End the sessions of these clients."""
        for client_id in client_ids:
            if client_id in self._by_client:
                self._end(self._by_client[client_id])

    def expire(self) -> list[str]:
        """End the sessions whose lease ran out while no poll waits; return their clients."""
        now = self._clock()
        ended = [s for s in self._by_token.values() if s.waiter is None and s.expires <= now]
        for session in ended:
            self._end(session)
        missing = [client for client, until in self._awaited.items() if until <= now]
        for client in missing:
            del self._awaited[client]
            self._on_left(client)
        return [session.client_id for session in ended] + missing

    def wake(self, client_ids: Iterable[str]) -> None:
        """Wake the polls of these clients."""
        for client_id in client_ids:
            if client_id in self._by_client:
                self._by_client[client_id].wake()

    def wake_all(self) -> None:
        """Wake every waiting poll."""
        for session in self._by_token.values():
            session.wake()

    def _renew(self, session: Session) -> Session:
        session.expires = self._clock() + self.lease
        return session

    def _end(self, session: Session) -> None:
        del self._by_token[session.token]
        del self._by_client[session.client_id]
        self._by_partition[session.partition].discard(session.client_id)
        session.wake()
        self._on_left(session.client_id)
