"""The spool: takes uploads, validates them, makes them durable, and only then says accepted.

An accepted update is two files in the round's updates folder, named by its task token:
the tensors, and a .json whose appearance accepts them. Everything else there is litter.
Knows nothing about gRPC or whose turn it is: `Judge` decides what counts.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

from common import tracing
from common.durable import DurableFile, read_sealed, seal, sync_folder, write_new_json
from common.errors import TensorError
from common.logs import get_logger
from common.tensors import (
    Digest,
    Schema,
    check_finite,
    check_norm,
    check_schema,
    digest_file,
    open_mapped,
    schema_of,
)
from common.training import Metrics
from common.transfer import DigestMismatch, OffsetMismatch, PayloadTooLong, Piece, Receiver
from server.assignments import Assignment

log = get_logger()


class Outcome(Enum):
    """How an upload ended; the names are federated.proto's."""

    ACCEPTED = "ACCEPTED"
    NOT_WANTED = "NOT_WANTED"
    OFFSET_MISMATCH = "OFFSET_MISMATCH"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    INVALID = "INVALID"
    NOT_STORED = "NOT_STORED"


class PushResult(NamedTuple):
    """What the client is told: the outcome, the bytes held, whether it is final, and why."""

    outcome: Outcome
    committed_size_bytes: int
    complete: bool
    message: str = ""


class Announcement(NamedTuple):
    """An upload's header: what the client says that it sends."""

    digest: Digest
    write_offset: int
    base_version: int
    base_digest: Digest
    num_examples: int
    num_steps: int
    metrics: Metrics


@dataclass(frozen=True, kw_only=True)
class StoredUpdate:
    """An accepted update."""

    task_token: str
    client_id: str
    num_examples: int
    num_steps: int
    metrics: Mapping[str, float]
    digest: Digest
    # L2, of its floating-point values.
    norm: float
    round: int
    attempt: int


class Judge(Protocol):
    """Decides about uploads; the coordinator."""

    def find(self, task_token: str, client_id: str) -> Assignment | None:
        """Return the client's open training assignment with this token."""

    def objection(self, assignment: Assignment, announcement: Announcement) -> str | None:
        """Return why the announced update is invalid."""

    def offer(self, assignment: Assignment) -> bool:
        """Say whether a valid, durable update counts; if so, `keep` was called for it."""

    def refuse(self, assignment: Assignment, message: str) -> None:
        """Learn that the update was invalid."""

    def count_resent(self, size: int) -> None:
        """Learn how much of a chunk had come before."""

    def fail(self, error: OSError) -> None:
        """Learn that an update that counts may not be on the disk."""


@dataclass(eq=False)
class _Upload:
    assignment: Assignment
    announcement: Announcement
    path: Path
    file: DurableFile
    receiver: Receiver
    # The end of what has come so far, which a wrong digest does not take back.
    reached: int = 0
    # Known once it is validated.
    norm: float = 0.0
    # The newest stream's number: an older one that still writes must stop.
    stream: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Spool:
    """The uploads of the current round, and the outcomes of this one and the one before.

    Args:
        schema: what an update must hold.
        max_norm: the largest L2 norm of its values; None is any.
    """

    def __init__(self, schema: Schema, max_norm: float | None = None) -> None:
        self._max_norm = max_norm
        self.accepted: dict[str, StoredUpdate] = {}
        self._schema = schema
        self._folder = Path()
        self._spares: list[Path] = []
        self._uploads: dict[str, _Upload] = {}
        # By client and task token.
        self._outcomes: dict[tuple[str, str], PushResult] = {}
        self._older_outcomes: dict[tuple[str, str], PushResult] = {}

    # ------------------------------------------------------------------ rounds

    def begin(self, folder: Path) -> None:
        """Take uploads into a folder from now on; they are written over the files in it."""
        self.close()
        self._folder = folder
        self._spares = list(folder.iterdir())
        self.accepted = {}
        self._older_outcomes, self._outcomes = self._outcomes, {}

    def recover(self, folder: Path, number: int, attempt: int) -> list[str]:
        """Go on in a folder that a crash left; return the clients whose update was damaged.

        What is not accepted, or does not match its digest, is deleted: its client sends again.
        """
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        damaged = []
        for path in sorted(folder.glob("*.json")):
            update = _read_update(path)
            if update is None or (update.round, update.attempt) != (number, attempt):
                damaged.append(update.client_id if update else path.stem)
                path.unlink()
                continue
            self.accepted[update.client_id] = update
            self._settle(update.client_id, update.task_token, _accepted(update))
        kept = {update.task_token for update in self.accepted.values()}
        for path in folder.iterdir():
            if path.name.split(".")[0] not in kept or path.suffix not in _ACCEPTED:
                path.unlink()
        return damaged

    def path_of(self, update: StoredUpdate) -> Path:
        """Return where an accepted update's tensors lie."""
        return self._folder / f"{update.task_token}.safetensors"

    # ------------------------------------------------------------------ uploads

    def committed(self, task_token: str, client_id: str) -> PushResult | None:
        """Return how much of a client's upload is here, and its outcome if it is final."""
        final = self._final(client_id, task_token)
        if final is not None:
            return final
        upload = self._uploads.get(task_token)
        if upload is None or upload.assignment.client_id != client_id:
            return None
        return _unfinished(Outcome.OFFSET_MISMATCH, upload, "")

    async def receive(
        self,
        task_token: str,
        client_id: str,
        announcement: Announcement,
        chunks: AsyncIterator[Piece],
        judge: Judge,
    ) -> PushResult:
        """Take one stream of an upload, from its header to its one outcome."""
        final = self._final(client_id, task_token)
        if final is not None:
            return final
        assignment = judge.find(task_token, client_id)
        if assignment is None:
            return _NOT_WANTED
        objection = judge.objection(assignment, announcement)
        if objection is not None:
            return self._refuse(assignment, judge, objection)
        try:
            upload = self._open(assignment, announcement)
        except OSError as error:
            return self._not_stored(self._folder, 0, error)
        upload.stream += 1
        stream = upload.stream
        if announcement.write_offset != upload.receiver.offset:
            return _unfinished(Outcome.OFFSET_MISMATCH, upload, "write_offset is not what is held")
        try:
            async for chunk in chunks:
                async with upload.lock:
                    if self._uploads.get(task_token) is not upload:
                        return self._final(client_id, task_token) or _NOT_WANTED
                    if upload.stream != stream:
                        message = "a newer stream took over"
                        return _unfinished(Outcome.OFFSET_MISMATCH, upload, message)
                    end = chunk.offset + len(chunk.data)
                    judge.count_resent(min(len(chunk.data), max(0, upload.reached - chunk.offset)))
                    upload.reached = max(upload.reached, end)
                    result = await self._take(upload, chunk, judge)
                if result is not None:
                    return result
        finally:
            self._close_if_done(upload)
        message = "the stream ended before its last chunk"
        return _unfinished(Outcome.OFFSET_MISMATCH, upload, message)

    def keep(self, client_id: str) -> None:
        """Accept the offered update of a client; it counts from here on.

        Raises:
            OSError: the disk fails; then what the engine counts is not what the disk holds.
        """
        upload = next(u for u in self._uploads.values() if u.assignment.client_id == client_id)
        update = _stored(upload)
        _provisional(upload.path).replace(upload.path.with_suffix(".json"))
        self.accepted[client_id] = update
        self._settle(client_id, update.task_token, _accepted(update))

    def close(self) -> None:
        """Take no more uploads for the current round; the accepted ones stay."""
        for upload in list(self._uploads.values()):
            self._forget(upload)

    def _final(self, client_id: str, task_token: str) -> PushResult | None:
        key = (client_id, task_token)
        return self._outcomes.get(key) or self._older_outcomes.get(key)

    def _settle(self, client_id: str, task_token: str, result: PushResult) -> PushResult:
        self._outcomes[client_id, task_token] = result
        return result

    def _open(self, assignment: Assignment, announcement: Announcement) -> _Upload:
        token = assignment.task_token
        upload = self._uploads.get(token)
        if upload is not None and upload.announcement.digest == announcement.digest:
            return upload
        if upload is not None:  # Trained again, to other bytes: nothing of the old ones helps.
            self._forget(upload)
        path = self._folder / f"{token}.safetensors"
        if self._spares:
            self._spares.pop().rename(path)
        file = DurableFile(path, announcement.digest.size_bytes)
        receiver = Receiver(file.write_at, announcement.digest)
        upload = _Upload(assignment, announcement, path, file, receiver)
        self._uploads[token] = upload
        return upload

    async def _take(self, upload: _Upload, chunk: Piece, judge: Judge) -> PushResult | None:
        try:
            await asyncio.to_thread(upload.receiver.write, chunk.offset, chunk.data)
            if chunk.last:
                await asyncio.to_thread(upload.receiver.finish)
        except OffsetMismatch as error:
            return _unfinished(Outcome.OFFSET_MISMATCH, upload, str(error))
        except DigestMismatch as error:
            return _unfinished(Outcome.DIGEST_MISMATCH, upload, str(error))
        except PayloadTooLong as error:
            return self._refuse(upload.assignment, judge, str(error))
        except OSError as error:
            return self._not_stored(upload.path, upload.receiver.offset, error)
        return await self._finish(upload, judge) if chunk.last else None

    async def _finish(self, upload: _Upload, judge: Judge) -> PushResult:
        assignment = upload.assignment
        token, client_id = assignment.task_token, assignment.client_id
        try:
            with tracing.span("validate", assignment.traceparent, client=client_id):
                await asyncio.to_thread(self._validate_and_sync, upload)
        except (TensorError, OSError) as error:
            if self._uploads.get(token) is not upload:  # The round ended, and its folder went.
                return _NOT_WANTED
            if isinstance(error, TensorError):
                return self._refuse(assignment, judge, str(error))
            # What the system failed to write may be gone, and the next sync may not tell.
            self._forget(upload)
            return self._not_stored(upload.path, 0, error)
        try:
            wanted = self._uploads.get(token) is upload and judge.offer(assignment)
            if wanted:
                await asyncio.to_thread(sync_folder, upload.path.parent)
        except OSError as error:
            judge.fail(error)
            return self._not_stored(upload.path, 0, error)
        if wanted:
            result = _accepted(self.accepted[client_id])
        else:
            _delete(upload.path)
            result = self._settle(client_id, token, _NOT_WANTED)
        self._forget(upload)
        return result

    def _validate_and_sync(self, upload: _Upload) -> None:
        """Check the tensors, then make them and their record durable under a provisional name."""
        check_schema(schema_of(upload.path), self._schema)
        tensors = open_mapped(upload.path)
        upload.norm = check_finite(tensors)
        if self._max_norm is not None:
            check_norm(tensors, self._max_norm)
        upload.file.sync()
        write_new_json(_provisional(upload.path), seal(asdict(_stored(upload))))

    def _not_stored(self, path: Path, held: int, error: OSError) -> PushResult:
        """Tell the operator what is wrong with the disk, and the client to come again."""
        problem = f"{path}: {error.strerror}"
        log.error("can't store an update; free some space or mend the disk", problem=problem)
        message = "the server can't store the update now; send it again later"
        return PushResult(Outcome.NOT_STORED, held, complete=False, message=message)

    def _refuse(self, assignment: Assignment, judge: Judge, message: str) -> PushResult:
        upload = self._uploads.get(assignment.task_token)
        if upload is not None:
            self._forget(upload)
            _delete(upload.path)
        result = PushResult(Outcome.INVALID, 0, complete=True, message=message)
        self._settle(assignment.client_id, assignment.task_token, result)
        judge.refuse(assignment, message)
        return result

    def _forget(self, upload: _Upload) -> None:
        token = upload.assignment.task_token
        if self._uploads.get(token) is upload:
            del self._uploads[token]
        self._close_if_done(upload)

    def _close_if_done(self, upload: _Upload) -> None:
        """Close an upload's file once it is forgotten and no thread writes to it."""
        current = self._uploads.get(upload.assignment.task_token) is upload
        if not current and not upload.lock.locked():
            upload.file.close()


# What remains of an update once it is accepted.
_ACCEPTED = (".safetensors", ".json")
_NOT_WANTED = PushResult(
    Outcome.NOT_WANTED, 0, complete=True, message="the round is over, or has enough updates"
)


def _accepted(update: StoredUpdate) -> PushResult:
    return PushResult(Outcome.ACCEPTED, update.digest.size_bytes, complete=True)


def _unfinished(outcome: Outcome, upload: _Upload, message: str) -> PushResult:
    return PushResult(outcome, upload.receiver.offset, complete=False, message=message)


def _stored(upload: _Upload) -> StoredUpdate:
    return StoredUpdate(
        task_token=upload.assignment.task_token,
        client_id=upload.assignment.client_id,
        num_examples=upload.announcement.num_examples,
        num_steps=upload.announcement.num_steps,
        metrics=upload.announcement.metrics,
        digest=upload.announcement.digest,
        norm=upload.norm,
        round=upload.assignment.round,
        attempt=upload.assignment.attempt,
    )


def _provisional(path: Path) -> Path:
    """Return the name of an update's record until the update is accepted."""
    return path.with_suffix(".json.new")


def _read_update(path: Path) -> StoredUpdate | None:
    try:
        value = read_sealed(path)
        update = StoredUpdate(**{**value, "digest": Digest(*value["digest"])})
        intact = digest_file(path.with_suffix(".safetensors")) == update.digest
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return update if intact else None


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
    _provisional(path).unlink(missing_ok=True)
