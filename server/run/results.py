"""What clients bring: updates, evaluations and failures, each through the table once.

Knows nothing about gRPC.
"""

import asyncio
from collections.abc import AsyncIterator

from common.training import Metrics
from common.transfer import Piece
from server.engine import events
from server.run.assignments import Assignment, Work
from server.run.coordinator import Coordinator
from server.run.uploads import (
    NOT_WANTED,
    Announcement,
    Invalid,
    PushResult,
    Received,
    Stream,
    Superseded,
    not_stored,
)

# What a client says when its training came to NaN or infinity, or went too far.
_DIVERGED = ("UPDATE_NOT_FINITE", "LOSS_NOT_FINITE", "UPDATE_TOO_LONG")


class Results:
    """Takes the results of clients' work, and tells the coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._status = coordinator.status
        self._spool = coordinator.spool

    def find(self, task_token: str, client_id: str) -> Assignment | None:
        """Return the client's open training assignment with this token."""
        assignment = self._coordinator.assignments.find(task_token, client_id)
        return assignment if assignment and assignment.work is Work.TRAIN else None

    async def push(
        self,
        task_token: str,
        client_id: str,
        announcement: Announcement,
        chunks: AsyncIterator[Piece],
    ) -> PushResult:
        """Take one stream of an upload, from its header to its one outcome."""
        spool, assignment = self._spool, self.find(task_token, client_id)
        final = spool.final(client_id, task_token)
        if final is not None or assignment is None:
            return final or NOT_WANTED
        objection = self._coordinator.offers.objection(assignment, announcement)
        if objection is not None:
            return self._refuse(assignment, objection)
        stream = spool.open(assignment, announcement)
        if isinstance(stream, PushResult):
            return stream
        async for chunk in chunks:
            resent = spool.resent(stream, chunk)
            self._status.ledger.count_up(client_id, len(chunk.data), resent)
            # It is done to its end, and decided, even if the stream is cut.
            taking = asyncio.ensure_future(self._take(stream, chunk))
            result = await asyncio.shield(taking)
            if result is not None:
                return result
        return spool.end(stream) or self._superseded(assignment)

    def report_failure(self, assignment: Assignment, reason: str, message: str) -> None:
        """Take a client's report that its work can't be done."""
        client = assignment.client_id
        self._status.log.warning("client failed", client=client, reason=reason, message=message)
        if reason in _DIVERGED:
            self._status.ledger.diverged.add(client)
        self._coordinator.assignments.finish(assignment.task_token)
        self._coordinator.apply(events.WorkFailed(assignment.round, assignment.attempt, client))

    def report_evaluation(
        self, assignment: Assignment, num_examples: int, metrics: Metrics
    ) -> None:
        """Take a client's evaluation of the candidate."""
        client = assignment.client_id
        self._status.ledger.evaluations[client] = (num_examples, metrics)
        self._coordinator.assignments.finish(assignment.task_token)
        self._coordinator.apply(
            events.ClientEvaluated(assignment.round, assignment.attempt, client)
        )

    async def _take(self, stream: Stream, chunk: Piece) -> PushResult | None:
        assignment = stream.upload.assignment
        match await self._spool.receive(stream, chunk):
            case Received() as received:
                return await self._decide(assignment, received)
            case Invalid(message):
                return self._refuse(assignment, message)
            case Superseded():
                return self._superseded(assignment)
            case result:
                return result

    async def _decide(self, assignment: Assignment, received: Received) -> PushResult:
        """Let the engine decide whether a valid, durable update counts."""
        client = assignment.client_id
        event = events.UpdateReceived(assignment.round, assignment.attempt, client)
        try:
            if events.KeepUpdate(client) not in self._coordinator.apply(event, received):
                return self._spool.discard(received)
            return await self._spool.sync(received)
        except OSError as error:
            self._coordinator.fail(error)
            return not_stored(received.upload.path, error)

    def _refuse(self, assignment: Assignment, message: str) -> PushResult:
        """Count an invalid update; its client is out of this attempt."""
        result = self._spool.refuse(assignment, message)
        self._status.log.warning("update refused", client=assignment.client_id, reason=message)
        self._status.ledger.refused.add(assignment.client_id)
        self._coordinator.assignments.finish(assignment.task_token)
        self._coordinator.apply(
            events.WorkFailed(assignment.round, assignment.attempt, assignment.client_id)
        )
        return result

    def _superseded(self, assignment: Assignment) -> PushResult:
        """Return what a stream is told whose upload or attempt is over, or has a newer stream."""
        token, client = assignment.task_token, assignment.client_id
        final = self._spool.final(client, token)
        if final is None and self.find(token, client) is None:
            return NOT_WANTED
        return final or self._spool.superseded(assignment)
