"""The spool: takes uploads, validates them, makes them durable, and only then says accepted.

An accepted update is two files in the round's updates folder: the tensors, and a .json whose
appearance accepts them and that names them. Everything else there is litter.

One upload, one file: bytes with another digest go to a file of their own, under a name that says
nothing, so that no upload can touch what another one writes, validates or left behind. Of a
client's uploads for one task token the newest alone settles the outcome; an older one hears that
it was superseded, as soon as its thread is done with its file.
Knows nothing about gRPC, and decides nothing: `receive` returns what came, and whoever called it
then calls `accept`, `discard` or `refuse`, before it lets anything else run.
"""

import asyncio
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import torch

from common import tracing
from common.durable import DurableFile, read_sealed, seal, sync_folder, write_new_json
from common.encodings import Encoding
from common.errors import TensorError
from common.logs import get_logger
from common.tensors import (
    Digest,
    Schema,
    digest_file,
    open_mapped,
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
    scalars: Mapping[str, float]
    metrics: Metrics


@dataclass(frozen=True, kw_only=True)
class StoredUpdate:
    """An accepted update; `file` is the name of its tensors' file, in the round's folder."""

    file: str
    task_token: str
    client_id: str
    num_examples: int
    scalars: Mapping[str, float]
    metrics: Mapping[str, float]
    digest: Digest
    round: int
    attempt: int
    # L2, of its floating-point values; known once it is validated.
    norm: float = 0.0


@dataclass(eq=False, kw_only=True)
class Upload:
    """Bytes of one digest on their way to the disk, for one assignment."""

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
    # Its files stay.
    kept: bool = False


class Stream(NamedTuple):
    """One of the streams that bring an upload's bytes: the newest, or one that it superseded."""

    upload: Upload
    number: int


class Received(NamedTuple):
    """An update that is complete, valid and durable, and does not count yet."""

    upload: Upload
    update: StoredUpdate


class Invalid(NamedTuple):
    """What came is no update, and why."""

    message: str


class Superseded(NamedTuple):
    """A newer stream took over, or the attempt is over."""


class Spool:
    """The uploads of the current round, and the outcomes of this one and the one before.

    Args:
        schema: what an update must hold.
        encoding: how its payload is laid out.
        max_norm: the largest L2 norm of its values; None is any.
    """

    def __init__(self, schema: Schema, encoding: Encoding, max_norm: float | None = None) -> None:
        self.encoding = encoding
        self._max_norm = max_norm
        self.accepted: dict[str, StoredUpdate] = {}
        self._schema = schema
        self._folder = Path()
        # The base model's integer tensors.
        self._base: Mapping[str, torch.Tensor] = {}
        self._spares: list[Path] = []
        self._uploads: dict[str, Upload] = {}
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
            self._outcomes[update.client_id, update.task_token] = _accepted(update)
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
        final = self.final(client_id, task_token)
        if final is not None:
            return final
        upload = self._uploads.get(task_token)
        if upload is None or upload.assignment.client_id != client_id:
            return None
        return _unfinished(Outcome.OFFSET_MISMATCH, upload, "")

    def open(self, assignment: Assignment, announcement: Announcement) -> Stream | PushResult:
        """Begin a stream of an upload, which supersedes the one before; or say why not."""
        try:
            upload = self._open(assignment, announcement)
        except OSError as error:
            return not_stored(self._folder, error)
        upload.stream += 1
        if announcement.write_offset != upload.receiver.offset:
            message = "write_offset is not what is held"
            return _unfinished(Outcome.OFFSET_MISMATCH, upload, message)
        return Stream(upload, upload.stream)

    def resent(self, stream: Stream, chunk: Piece) -> int:
        """Return how many bytes of a chunk had come before."""
        if not self._is_newest(*stream):
            return 0
        upload, end = stream.upload, chunk.offset + len(chunk.data)
        known, upload.reached = upload.reached, max(upload.reached, end)
        return min(len(chunk.data), max(0, known - chunk.offset))

    async def receive(
        self, stream: Stream, chunk: Piece
    ) -> Received | Invalid | Superseded | PushResult | None:
        """Take a chunk, the last one to the end: check the update, and make it durable.

        Returns:
            None: more is to come. A PushResult: this stream ends, and the upload does not.
        """
        upload = stream.upload
        async with upload.lock:
            if not self._is_newest(*stream):
                return Superseded()
            upload.busy = True
            try:
                result = await self._write(upload, chunk)
                if result is None and chunk.last:
                    return await self._finish(upload)
                return result
            finally:
                upload.busy = False
                self._release(upload)

    def end(self, stream: Stream) -> PushResult | None:
        """Return what is told to a stream that ended before its last chunk; None: superseded."""
        if not self._is_newest(*stream):
            return None
        message = "the stream ended before its last chunk"
        return _unfinished(Outcome.OFFSET_MISMATCH, stream.upload, message)

    def accept(self, received: Received) -> None:
        """Let a received update count from here on; `sync` makes that durable.

        Raises:
            OSError: the disk fails; then what the engine counts is not what the disk holds.
        """
        upload, update = received
        upload.kept = True
        _provisional(upload.path).replace(upload.path.with_suffix(".json"))
        self.accepted[update.client_id] = update
        self._end(upload.assignment, _accepted(update))

    async def sync(self, received: Received) -> PushResult:
        """Make an acceptance durable; return what may be told from then on.

        Raises:
            OSError: as `accept`.
        """
        # Gone: its attempt has ended in the meantime, and took the folder away.
        with suppress(FileNotFoundError):
            await asyncio.to_thread(sync_folder, received.upload.path.parent)
        return _accepted(received.update)

    def discard(self, received: Received) -> PushResult:
        """Delete a received update, which does not count."""
        return self._end(received.upload.assignment, NOT_WANTED)

    def refuse(self, assignment: Assignment, message: str) -> PushResult:
        """Delete what came of an assignment's update, which is invalid."""
        result = PushResult(Outcome.INVALID, 0, complete=True, message=message)
        return self._end(assignment, result)

    def superseded(self, assignment: Assignment) -> PushResult:
        """Return what a stream is told that is not the newest one of its task token any more."""
        newest = self._uploads.get(assignment.task_token)
        held = newest.receiver.offset if newest else 0
        message = "a newer stream took over"
        return PushResult(Outcome.OFFSET_MISMATCH, held, complete=False, message=message)

    def close(self) -> None:
        """Take no more uploads for the current round; the accepted ones stay.

        Whoever removes the round's folder removes the others' files.
        """
        for upload in self._uploads.values():
            if not upload.busy:
                upload.file.close()
        self._uploads = {}

    def final(self, client_id: str, task_token: str) -> PushResult | None:
        """Return how a client's upload ended, None if it has not."""
        key = (client_id, task_token)
        return self._outcomes.get(key) or self._older_outcomes.get(key)

    def _end(self, assignment: Assignment, result: PushResult) -> PushResult:
        upload = self._uploads.pop(assignment.task_token, None)
        if upload is not None:
            self._release(upload)
        self._outcomes[assignment.client_id, assignment.task_token] = result
        return result

    def _open(self, assignment: Assignment, announcement: Announcement) -> Upload:
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
        newest = self._uploads[token] = Upload(
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

    async def _write(
        self, upload: Upload, chunk: Piece
    ) -> Invalid | Superseded | PushResult | None:
        try:
            await asyncio.to_thread(upload.receiver.write, chunk.offset, chunk.data)
            if chunk.last:
                await asyncio.to_thread(upload.receiver.finish)
        except (OffsetMismatch, DigestMismatch, PayloadTooLong, OSError) as error:
            if not self._is_newest(upload):
                return Superseded()
            match error:
                case OffsetMismatch():
                    return _unfinished(Outcome.OFFSET_MISMATCH, upload, str(error))
                case DigestMismatch():
                    return _unfinished(Outcome.DIGEST_MISMATCH, upload, str(error))
                case PayloadTooLong():
                    return Invalid(str(error))
                case OSError():
                    return not_stored(upload.path, error, upload.receiver.offset)
        return None

    async def _finish(self, upload: Upload) -> Received | Invalid | Superseded | PushResult:
        assignment = upload.assignment
        update, problem = _stored(upload), None
        try:
            with tracing.span("validate", assignment.traceparent, client=assignment.client_id):
                update = await asyncio.to_thread(
                    self._validate_and_sync, upload.path, upload.file, update
                )
        except (TensorError, OSError) as error:
            problem = error
        if not self._is_newest(upload):
            return Superseded()
        if isinstance(problem, TensorError):
            return Invalid(str(problem))
        if problem is not None:
            # What the system failed to write may be gone, and the next sync may not tell.
            del self._uploads[assignment.task_token]
            return not_stored(upload.path, problem)
        return Received(upload, update)

    def _validate_and_sync(
        self, path: Path, file: DurableFile, update: StoredUpdate
    ) -> StoredUpdate:
        """Check the tensors, then make them and their record durable under a provisional name.

        Returns:
            the update with its norm.
        """
        norm = self.encoding.validate(path, self._schema, self._base)
        if self._max_norm is not None and norm > self._max_norm:
            raise TensorError(
                f"the update's L2 norm is {norm:.6g}, the limit is {self._max_norm:g}"
            )
        file.sync()
        update = replace(update, norm=norm)
        write_new_json(_provisional(path), seal(asdict(update)))
        return update

    def _is_newest(self, upload: Upload, stream: int | None = None) -> bool:
        current = self._uploads.get(upload.assignment.task_token) is upload
        return current and stream in (None, upload.stream)

    def _release(self, upload: Upload) -> None:
        """Close an upload's file, unless it is wanted still; delete it, unless it was kept."""
        if upload.busy or self._is_newest(upload):
            return
        upload.file.close()
        if not upload.kept:
            upload.path.unlink(missing_ok=True)
            _provisional(upload.path).unlink(missing_ok=True)


NOT_WANTED = PushResult(
    Outcome.NOT_WANTED, 0, complete=True, message="the round is over, or has enough updates"
)


def not_stored(path: Path, error: OSError, held: int = 0) -> PushResult:
    """Tell the operator what is wrong with the disk, and the client to come again."""
    problem = f"{path}: {error.strerror}"
    log.error("can't store an update; free some space or mend the disk", problem=problem)
    message = "the server can't store the update now; send it again later"
    return PushResult(Outcome.NOT_STORED, held, complete=False, message=message)


def _accepted(update: StoredUpdate) -> PushResult:
    return PushResult(Outcome.ACCEPTED, update.digest.size_bytes, complete=True)


def _unfinished(outcome: Outcome, upload: Upload, message: str) -> PushResult:
    return PushResult(outcome, upload.receiver.offset, complete=False, message=message)


def _stored(upload: Upload) -> StoredUpdate:
    """Return what is known of an update before its values are looked at."""
    return StoredUpdate(
        file=upload.path.name,
        task_token=upload.assignment.task_token,
        client_id=upload.assignment.client_id,
        num_examples=upload.announcement.num_examples,
        scalars=upload.announcement.scalars,
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
        # As format 1 had it before there were other scalars.
        if "num_steps" in value:
            value["scalars"] = {"num_steps": value.pop("num_steps")}
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
