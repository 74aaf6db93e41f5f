"""The spool: takes uploads, validates them, makes them durable, and only then says accepted.

An accepted update is two files in the round's updates folder: the tensors, and a .json whose
appearance accepts them and that names them. Everything else there is litter.

One upload, one file: bytes with another digest go to a file of their own, under a name that says
nothing, so that no upload can touch what another one writes, validates or left behind. Of a
client's uploads for one task token the newest alone settles the outcome; an older one hears that
it was superseded, as soon as its thread is done with its file.
Knows nothing about gRPC or whose turn it is: `Judge` decides what counts.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol
from uuid import uuid4

import torch

from common import tracing
from common.durable import DurableFile, read_sealed, seal, sync_folder, write_new_json
from common.errors import TensorError
from common.logs import get_logger
from common.tensors import (
    Digest,
    Schema,
    check_finite,
    check_integers,
    check_schema,
    digest_file,
    open_mapped,
    schema_of,
)
from common.training import Metrics
from common.transfer import DigestMismatch, OffsetMismatch, PayloadTooLong, Piece, Receiver
from server.run.assignments import Assignment

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
    """An accepted update; `file` is the name of its tensors' file, in the round's folder."""

    file: str
    task_token: str
    client_id: str
    num_examples: int
    num_steps: int
    metrics: Mapping[str, float]
    digest: Digest
    round: int
    attempt: int
    # L2, of its floating-point values; known once it is validated.
    norm: float = 0.0


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


@dataclass(eq=False, kw_only=True)
class _Upload:
    assignment: Assignment
    # Of the newest stream.
    announcement: Announcement
    path: Path
    file: DurableFile
    receiver: Receiver
    # One task token's uploads take turns: no more than one of them holds bytes beside the newest.
    lock: asyncio.Lock
    # The end of what has come so far, which a wrong digest does not take back.
    reached: int = 0
    # The newest stream's number: an older one that still writes must stop.
    stream: int = 0
    # A thread uses the file.
    busy: bool = False
    # What is offered to the judge, and whether it was kept.
    update: StoredUpdate | None = None
    kept: bool = False


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
        # The base model's integer tensors.
        self._base: Mapping[str, torch.Tensor] = {}
        self._spares: list[Path] = []
        self._uploads: dict[str, _Upload] = {}
        # By client and task token.
        self._outcomes: dict[tuple[str, str], PushResult] = {}
        self._older_outcomes: dict[tuple[str, str], PushResult] = {}

    # ------------------------------------------------------------------ rounds

    def begin(self, folder: Path, base: Path, spares: list[Path]) -> None:
        """Take uploads of a new attempt.

        Args:
            folder: where they go; it holds nothing.
            base: the model that they are to be added to.
            spares: files that are moved there and written over, which is cheaper than new ones.

        Raises:
            TensorError: the base can't be read.
        """
        self.close()
        self._folder, self._base, self._spares = folder, _integers(base), spares
        self.accepted = {}
        self._older_outcomes, self._outcomes = self._outcomes, {}

    def recover(self, folder: Path, base: Path, number: int, attempt: int) -> list[str | None]:
        """Go on in a folder that a crash left; return the clients whose update was damaged.

        None stands for a client whose record can't be read.
        What is not accepted, or does not match its digest, is deleted: its client sends again.

        Raises:
            OSError: the folder can't be read, or a file not deleted.
            TensorError: the base can't be read.
        """
        self._folder, self._base = folder, _integers(base)
        folder.mkdir(parents=True, exist_ok=True)
        damaged: list[str | None] = []
        kept = set[str]()
        for path in sorted(folder.glob("*.json")):
            update = _read_update(path)
            if (
                update is None
                or (update.round, update.attempt) != (number, attempt)
                or path.stem != Path(update.file).stem
                or not _is_intact(folder / update.file, update.digest)
            ):
                damaged.append(update.client_id if update else None)
                continue
            kept |= {path.name, update.file}
            self.accepted[update.client_id] = update
            self._settle(update.client_id, update.task_token, _accepted(update))
        for path in folder.iterdir():
            if path.name in kept:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        return damaged

    def path_of(self, update: StoredUpdate) -> Path:
        """Return where an accepted update's tensors lie."""
        return self._folder / update.file

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
        try:
            if announcement.write_offset != upload.receiver.offset:
                message = "write_offset is not what is held"
                return _unfinished(Outcome.OFFSET_MISMATCH, upload, message)
            async for chunk in chunks:
                # It is done to its end, and settles what it settles, even if the stream is cut.
                taking = asyncio.ensure_future(self._take(upload, stream, chunk, judge))
                result = await asyncio.shield(taking)
                if result is not None:
                    return result
            if not self._is_newest(upload, stream):
                return self._superseded(upload, judge)
            message = "the stream ended before its last chunk"
            return _unfinished(Outcome.OFFSET_MISMATCH, upload, message)
        finally:
            self._release(upload)

    def keep(self, client_id: str) -> None:
        """Accept the offered update of a client; it counts from here on.

        Raises:
            OSError: the disk fails; then what the engine counts is not what the disk holds.
        """
        upload = next(u for u in self._uploads.values() if u.assignment.client_id == client_id)
        update = upload.update
        if update is None:
            raise ValueError("an update is kept after it was offered")
        upload.kept = True
        _provisional(upload.path).replace(upload.path.with_suffix(".json"))
        self.accepted[client_id] = update
        self._settle(client_id, update.task_token, _accepted(update))

    def close(self) -> None:
        """Take no more uploads for the current round; the accepted ones stay.

        Whoever removes the round's folder removes the others' files.
        """
        for upload in self._uploads.values():
            if not upload.busy:
                upload.file.close()
        self._uploads = {}

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
            upload.announcement = announcement
            return upload
        if self._spares:
            spare = self._spares.pop()
            path = spare.rename(self._folder / spare.name)
        else:
            path = self._folder / f"{uuid4().hex}.safetensors"
        try:
            file = DurableFile(path, announcement.digest.size_bytes)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        newest = self._uploads[token] = _Upload(
            assignment=assignment,
            announcement=announcement,
            path=path,
            file=file,
            receiver=Receiver(file.write_at, announcement.digest),
            lock=upload.lock if upload else asyncio.Lock(),
        )
        if upload is not None:  # Trained again, to other bytes: nothing of the old ones helps.
            self._release(upload)
        return newest

    async def _take(
        self, upload: _Upload, stream: int, chunk: Piece, judge: Judge
    ) -> PushResult | None:
        async with upload.lock:
            if not self._is_newest(upload, stream):
                return self._superseded(upload, judge)
            end = chunk.offset + len(chunk.data)
            judge.count_resent(min(len(chunk.data), max(0, upload.reached - chunk.offset)))
            upload.reached = max(upload.reached, end)
            upload.busy = True
            try:
                result = await self._write(upload, chunk, judge)
                if result is None and chunk.last:
                    result = await self._finish(upload, judge)
                return result
            finally:
                upload.busy = False
                self._release(upload)

    async def _write(self, upload: _Upload, chunk: Piece, judge: Judge) -> PushResult | None:
        try:
            await asyncio.to_thread(upload.receiver.write, chunk.offset, chunk.data)
            if chunk.last:
                await asyncio.to_thread(upload.receiver.finish)
        except (OffsetMismatch, DigestMismatch, PayloadTooLong, OSError) as error:
            if not self._is_newest(upload):
                return self._superseded(upload, judge)
            match error:
                case OffsetMismatch():
                    return _unfinished(Outcome.OFFSET_MISMATCH, upload, str(error))
                case DigestMismatch():
                    return _unfinished(Outcome.DIGEST_MISMATCH, upload, str(error))
                case PayloadTooLong():
                    return self._refuse(upload.assignment, judge, str(error))
                case OSError():
                    return self._not_stored(upload.path, upload.receiver.offset, error)
        return None

    async def _finish(self, upload: _Upload, judge: Judge) -> PushResult:
        assignment = upload.assignment
        token, client_id = assignment.task_token, assignment.client_id
        update, problem = _stored(upload), None
        try:
            with tracing.span("validate", assignment.traceparent, client=client_id):
                update = await asyncio.to_thread(
                    self._validate_and_sync, upload.path, upload.file, update
                )
        except (TensorError, OSError) as error:
            problem = error
        if not self._is_newest(upload):
            return self._superseded(upload, judge)
        if isinstance(problem, TensorError):
            return self._refuse(assignment, judge, str(problem))
        if problem is not None:
            # What the system failed to write may be gone, and the next sync may not tell.
            del self._uploads[token]
            return self._not_stored(upload.path, 0, problem)
        upload.update = update
        try:
            if judge.offer(assignment):
                # Gone: its attempt has ended in the meantime, and took the folder away.
                with suppress(FileNotFoundError):
                    await asyncio.to_thread(sync_folder, upload.path.parent)
                result = _accepted(update)
            else:
                result = self._settle(client_id, token, _NOT_WANTED)
        except OSError as error:
            judge.fail(error)
            return self._not_stored(upload.path, 0, error)
        self._uploads.pop(token, None)
        return result

    def _validate_and_sync(
        self, path: Path, file: DurableFile, update: StoredUpdate
    ) -> StoredUpdate:
        """Check the tensors, then make them and their record durable under a provisional name.

        Returns:
            the update with its norm.
        """
        check_schema(schema_of(path), self._schema)
        tensors = open_mapped(path)
        norm = check_finite(tensors)
        check_integers(tensors, self._base)
        if self._max_norm is not None and norm > self._max_norm:
            raise TensorError(
                f"the update's L2 norm is {norm:.6g}, the limit is {self._max_norm:g}"
            )
        file.sync()
        update = replace(update, norm=norm)
        write_new_json(_provisional(path), seal(asdict(update)))
        return update

    def _not_stored(self, path: Path, held: int, error: OSError) -> PushResult:
        """Tell the operator what is wrong with the disk, and the client to come again."""
        problem = f"{path}: {error.strerror}"
        log.error("can't store an update; free some space or mend the disk", problem=problem)
        message = "the server can't store the update now; send it again later"
        return PushResult(Outcome.NOT_STORED, held, complete=False, message=message)

    def _refuse(self, assignment: Assignment, judge: Judge, message: str) -> PushResult:
        upload = self._uploads.pop(assignment.task_token, None)
        if upload is not None:
            self._release(upload)
        result = PushResult(Outcome.INVALID, 0, complete=True, message=message)
        self._settle(assignment.client_id, assignment.task_token, result)
        judge.refuse(assignment, message)
        return result

    def _is_newest(self, upload: _Upload, stream: int | None = None) -> bool:
        current = self._uploads.get(upload.assignment.task_token) is upload
        return current and stream in (None, upload.stream)

    def _superseded(self, upload: _Upload, judge: Judge) -> PushResult:
        """Return what a stream is told that is not the newest one of its task token any more."""
        token, client_id = upload.assignment.task_token, upload.assignment.client_id
        final = self._final(client_id, token)
        if final is not None:
            return final
        if judge.find(token, client_id) is None:
            return _NOT_WANTED
        newest = self._uploads.get(token)
        held = newest.receiver.offset if newest else 0
        message = "a newer stream took over"
        return PushResult(Outcome.OFFSET_MISMATCH, held, complete=False, message=message)

    def _release(self, upload: _Upload) -> None:
        """Close an upload's file, unless it is wanted still; delete it, unless it was kept."""
        if upload.busy or self._is_newest(upload):
            return
        upload.file.close()
        if not upload.kept:
            upload.path.unlink(missing_ok=True)
            _provisional(upload.path).unlink(missing_ok=True)


_NOT_WANTED = PushResult(
    Outcome.NOT_WANTED, 0, complete=True, message="the round is over, or has enough updates"
)


def _accepted(update: StoredUpdate) -> PushResult:
    return PushResult(Outcome.ACCEPTED, update.digest.size_bytes, complete=True)


def _unfinished(outcome: Outcome, upload: _Upload, message: str) -> PushResult:
    return PushResult(outcome, upload.receiver.offset, complete=False, message=message)


def _stored(upload: _Upload) -> StoredUpdate:
    """Return what is known of an update before its values are looked at."""
    return StoredUpdate(
        file=upload.path.name,
        task_token=upload.assignment.task_token,
        client_id=upload.assignment.client_id,
        num_examples=upload.announcement.num_examples,
        num_steps=upload.announcement.num_steps,
        metrics=upload.announcement.metrics,
        digest=upload.announcement.digest,
        round=upload.assignment.round,
        attempt=upload.assignment.attempt,
    )


def _provisional(path: Path) -> Path:
    """Return the name of an update's record until the update is accepted."""
    return path.with_suffix(".json.new")


def _read_update(path: Path) -> StoredUpdate | None:
    try:
        value = read_sealed(path)
        return StoredUpdate(**{**value, "digest": Digest(*value["digest"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _is_intact(path: Path, digest: Digest) -> bool:
    try:
        return digest_file(path) == digest
    except (OSError, ValueError):
        return False


def _integers(model: Path) -> dict[str, torch.Tensor]:
    tensors = open_mapped(model).items()
    return {name: tensor.clone() for name, tensor in tensors if not tensor.is_floating_point()}
