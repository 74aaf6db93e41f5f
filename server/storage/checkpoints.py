"""The run directory: what is committed, what is in progress, and how to go on from it.

A round is committed by the appearance of its record.json, which is written last. A round
in progress has a cohort.json and accepted updates. Knows nothing about sessions or gRPC.
"""

import fcntl
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from common.durable import link, read_sealed, seal, sync_file, sync_folder, write_json
from common.errors import CheckpointError, InputError
from common.logs import get_logger
from common.tensors import Digest, digest_file, open_mapped
from server.engine.early_stopping import Progress
from server.storage import layout
from server.storage.columns import Row
from server.storage.metrics import fields_of
from server.storage.run_files import check_format, find_runs, newest_first

log = get_logger()


# What a server writes into a run directory before config.json.
_BEFORE_THE_CONFIG = frozenset(
    {layout.LOCK, layout.ROUNDS, layout.MODELS, layout.OPERATOR_TOKEN}
    | {f"{name}.tmp" for name in (layout.OPERATOR_TOKEN, layout.CONFIG)}
)


class ModelFile(NamedTuple):
    """A model of the run: its version, where its bytes lie, and their digest."""

    version: int
    path: Path
    digest: Digest


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a committed round leaves for the next one. Round 0 is the initial model."""

    round: int
    model: Digest
    # What the algorithm keeps, by name: files beside the model, of its schema; and other values.
    state: Mapping[str, Digest] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    # The last round that counted an update of a client.
    contributed: Mapping[str, int] = field(default_factory=dict)
    # Clients that had a session; a restarted server awaits them.
    live: tuple[str, ...] = ()
    progress: Progress = field(default_factory=Progress)
    row: Row | None = None
    clients: tuple[dict[str, Any], ...] = ()
    # By class, on the server's test set.
    evaluation: dict[str, Any] | None = None
    # Of clients.jsonl and evaluations.jsonl with this round's, by file.
    lines: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """An attempt in progress: who was selected, and who was there."""

    round: int
    attempt: int
    cohort: tuple[str, ...]
    goal: int
    live: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What a run directory holds: the last commit, and the attempt that was under way."""

    record: Record
    cohort: Cohort | None = field(default=None)


class RunDirectory:
    """Reads and writes one run directory, which no other server may use meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    # ------------------------------------------------------------ the whole run

    def lock(self) -> None:
        """Make the directory and hold it until the process ends.

        Raises:
            InputError: it can't be written, or another server holds it.
        """
        try:
            (self.path / layout.ROUNDS).mkdir(parents=True, exist_ok=True)
            (self.path / layout.MODELS).mkdir(exist_ok=True)
            # Models and updates tell of the data that they come from.
            self.path.chmod(0o700)
            self._lock = (self.path / layout.LOCK).open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.unlock()
            raise InputError(
                f"--run-dir: another server is using {self.path}; stop it or name another folder"
            ) from error
        except OSError as error:
            raise InputError(
                f"--run-dir: can't write {self.path}: {error.strerror}; name another folder"
            ) from error

    def unlock(self) -> None:
        """Let another server use the directory; the end of the process does that too."""
        if self._lock is not None:
            self._lock.close()

    def holds_run(self) -> bool:
        """Say whether there is a run here."""
        return (self.path / layout.CONFIG).exists() or bool(layout.committed(self.path))

    def is_unbegun(self) -> bool:
        """Say whether a server that began a run here was killed before it had saved anything."""
        if not self.path.is_dir() or self.holds_run():
            return False
        kept = {path.name for path in self.path.iterdir()} | {
            path.name for path in self.path.glob("models/*")
        }
        return kept <= _BEFORE_THE_CONFIG

    def save_config(self, config: Mapping[str, Any]) -> None:
        """Make the run's resolved configuration durable."""
        write_json(self.path / layout.CONFIG, seal(config))

    def load_config(self) -> dict[str, Any]:
        """Return the run's configuration.

        Raises:
            CheckpointError: there is none, it is damaged, or a newer Folkmoot wrote it.
        """
        path = self.path / layout.CONFIG
        remedy = "put back a copy of it, or begin a new run"
        config = _read_sealed(path, remedy)
        check_format(self.path, config)
        if not {"run_id", "options"} <= config.keys():
            raise CheckpointError(f"{path} lacks what a configuration has; {remedy}")
        return config

    def order_stop(self, rounds: int) -> None:
        """Make an operator's order durable: the current round is the last one.

        Args:
            rounds: the run's --rounds; the order is void once the run is given more.

        Raises:
            OSError: it can't be written.
        """
        write_json(self.path / layout.STOP_ORDER, seal({"rounds": rounds}))

    def is_to_stop(self, rounds: int) -> bool:
        """Say whether there is an order to stop that a run of so many rounds has to follow.

        Raises:
            CheckpointError: it is damaged.
        """
        path = self.path / layout.STOP_ORDER
        if not path.exists():
            return False
        remedy = "put back a copy of it, or move it elsewhere to go on without the order"
        ordered = _read_sealed(path, remedy).get("rounds")
        return not isinstance(ordered, int) or rounds <= ordered

    # --------------------------------------------------------------- one round

    def round_folder(self, number: int) -> Path:
        """Return where a round lives."""
        return layout.round_folder(self.path, number)

    def updates_folder(self, number: int) -> Path:
        """Return where a round's accepted updates lie while it is in progress."""
        return self.round_folder(number) / layout.UPDATES

    def model_path(self, number: int) -> Path:
        """Return where a round's model lies; before the commit, the candidate."""
        return layout.tensors(self.round_folder(number), layout.MODEL)

    def state_path(self, number: int, name: str) -> Path:
        """Return where what the strategy keeps after a round, under this name, lies."""
        return layout.tensors(self.round_folder(number), name)

    def begin_initial(self, model: bytes) -> None:
        """Write the initial model; `commit` makes it round 0.

        Raises:
            OSError: it can't be written.
        """
        self.round_folder(0).mkdir(exist_ok=True)
        self.model_path(0).write_bytes(model)
        sync_file(self.model_path(0))

    def begin_attempt(self, cohort: Cohort) -> None:
        """Make durable who was selected, before anyone gets work; there is no update yet.

        Raises:
            OSError: it can't be written, or there are updates of an attempt before.
        """
        updates = self.updates_folder(cohort.round)
        updates.parent.mkdir(exist_ok=True)
        updates.mkdir()
        write_json(self.round_folder(cohort.round) / layout.COHORT, seal(asdict(cohort)))
        sync_folder(self.path / layout.ROUNDS)

    def abandon_attempt(self, number: int) -> None:
        """Drop a round in progress, in one step: after a crash all of it is there, or nothing.

        Raises:
            OSError: it can't be dropped; nothing of it may count in the next attempt.
        """
        _clear(self._abandoned)
        if self.round_folder(number).exists():
            self.round_folder(number).rename(self._abandoned)
            sync_folder(self.path / layout.ROUNDS)
        _clear(self._abandoned)

    def commit(self, record: Record) -> ModelFile:
        """Make a round the last committed one.

        Its model file (and the strategy's) must be durable already.

        Raises:
            OSError: it can't be written.
        """
        folder = self.round_folder(record.round)
        sync_folder(folder)
        write_json(folder / layout.RECORD, seal(asdict(record)))
        sync_folder(folder.parent)
        self._publish(layout.LAST, record)
        self._publish_if_best(record)
        self._set_aside(self.updates_folder(record.round))
        return ModelFile(record.round, self.model_path(record.round), record.model)

    def remove_old(self, last: int, keep: int) -> None:
        """Remove committed rounds but the last ones.

        Args:
            last: the last committed round.
            keep: how many stay, at least 1.
        """
        for number, old in layout.rounds(self.path):
            if number <= last - keep:
                # First the record: half a round must not look like a committed one.
                (old / layout.RECORD).unlink(missing_ok=True)
                shutil.rmtree(old, ignore_errors=True)

    def spares(self) -> list[Path]:
        """Return the files that the next round's updates are written over."""
        there = self._spare.is_dir() and not self._spare.is_symlink()
        return list(self._spare.iterdir()) if there else []

    def remove_spare(self) -> None:
        """Remove the files that the next round's updates would be written over."""
        _clear(self._spare)

    @property
    def _spare(self) -> Path:
        return self.path / layout.ROUNDS / layout.SPARE

    @property
    def _abandoned(self) -> Path:
        return self.path / layout.ROUNDS / layout.ABANDONED

    def _set_aside(self, updates: Path) -> None:
        """Keep a round's accepted tensors for the next one to write over: cheaper than new files.

        Of the others some may still be written to, or validated, for a moment.
        """
        if not updates.exists():
            return
        self.remove_spare()
        self._spare.mkdir()
        for record in updates.glob("*.json"):
            tensors = record.with_suffix(".safetensors")
            tensors.rename(self._spare / tensors.name)
        shutil.rmtree(updates, ignore_errors=True)

    def _publish_if_best(self, record: Record) -> bool:
        """Publish a model that is the best so far, or that no other was compared with."""
        best = record.progress.best_round in (record.round, None)
        # What nobody has trained is no best model.
        if best and record.round:
            self._publish(layout.BEST, record)
        return best

    def _publish(self, name: str, record: Record) -> None:
        row = record.row
        link(self.model_path(record.round), layout.model(self.path, name))
        metadata = {
            "round": record.round,
            "blake3": record.model.blake3,
            "size_bytes": record.model.size_bytes,
            "accuracy": row and row.global_accuracy,
            "loss": row and row.global_loss,
            "client_accuracy": row and row.client_accuracy,
            "client_loss": row and row.client_loss,
        }
        write_json(layout.model(self.path, name).with_suffix(".json"), metadata)

    # --------------------------------------------------------------- recovery

    def recover(self) -> Recovered | None:
        """Return where the run stands; None: not even the initial model is committed.

        Of the rounds in progress, which a crash may leave, only the next one stays, and only if
        its cohort was durable: nobody else had work of it.

        Raises:
            OSError: what is no part of the run any more can't be deleted.
            CheckpointError: the last committed round is damaged; names the file and the remedy.
        """
        committed = layout.committed(self.path)
        if not committed:
            if layout.model(self.path).exists():
                raise CheckpointError(
                    f"{self.path / layout.ROUNDS} has lost all committed rounds; put back a copy "
                    "of it, or begin a new run"
                )
            return None
        record = self._load_record(max(committed))
        self.remove_spare()
        _clear(self._abandoned)
        for number, folder in layout.rounds(self.path):
            if number in committed:
                shutil.rmtree(self.updates_folder(number), ignore_errors=True)
            elif number != record.round + 1 or not (folder / layout.COHORT).exists():
                shutil.rmtree(folder)
        # What a crash between the commit and its publication left undone.
        self._publish(layout.LAST, record)
        if not self._publish_if_best(record):
            self._check_best()
        return Recovered(record=record, cohort=self._load_cohort(record.round + 1))

    def _check_best(self) -> None:
        """Warn if the best model, of an earlier round, is not what was published."""
        path = layout.model(self.path, layout.BEST)
        try:
            said = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            intact = digest_file(path) == Digest(said["blake3"], said["size_bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            log.warning("the best model so far is damaged or gone", file=str(path))

    def _load_record(self, number: int) -> Record:
        folder = self.round_folder(number)
        remedy = self._way_back(number)
        value = _read_sealed(folder / layout.RECORD, remedy)
        try:
            row = value.get("row")
            record = Record(
                **fields_of(Record, value)
                | {
                    "model": Digest(*value["model"]),
                    "state": {k: Digest(*digest) for k, digest in value.get("state", {}).items()},
                    "live": tuple(value.get("live", ())),
                    "progress": Progress(**fields_of(Progress, value.get("progress", {}))),
                    "row": Row(**fields_of(Row, row)) if row else None,
                    "clients": tuple(value.get("clients", ())),
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            name = folder / layout.RECORD
            raise CheckpointError(f"{name} lacks what a record has; {remedy}") from error
        if record.round != number:
            raise CheckpointError(f"{folder / layout.RECORD} is of another round; {remedy}")
        _check_digest(self.model_path(number), record.model, remedy)
        for kept, digest in record.state.items():
            _check_digest(self.state_path(number, kept), digest, remedy)
        return record

    def _load_cohort(self, number: int) -> Cohort | None:
        path = self.round_folder(number) / layout.COHORT
        if not path.exists():
            return None
        remedy = (
            f"put back a copy of it, or move {path.parent} out of the run directory: the round "
            "then begins again"
        )
        value = _read_sealed(path, remedy)
        try:
            return Cohort(
                round=value["round"],
                attempt=value["attempt"],
                cohort=tuple(value["cohort"]),
                goal=value["goal"],
                live=tuple(value.get("live", value["cohort"])),
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} lacks what a cohort has; {remedy}") from error

    def _way_back(self, number: int) -> str:
        """Return what to do about a committed round that is damaged."""
        before = [earlier for earlier in layout.committed(self.path) if earlier < number]
        if not before:
            return "put back a copy of it, or begin a new run"
        return (
            f"put back a copy of it, or move {self.round_folder(number)} out of the run directory: "
            f"the run then goes on after round {before[-1]}"
        )


def newest_run(folder: Path) -> Path:
    """Return the run directory in `folder` that was begun last.

    Raises:
        InputError: there is none.
    """
    found = find_runs(folder)
    with suppress(FileNotFoundError):
        found += [path for path in folder.iterdir() if RunDirectory(path).is_unbegun()]
    if found:
        return newest_first(found)[0]
    raise InputError(f"--resume: there is no run in {folder}/; name its folder with --run-dir")


def export_pth(models: Path) -> Sequence[Path]:
    """Write each safetensors model in `models` as a .pth beside it; return the paths.

    A plain state dict, for `torch.load(path, weights_only=True)`.
    """
    import torch

    written = []
    for source in sorted(models.glob("*.safetensors")):
        target = source.with_suffix(".pth")
        temporary = target.with_suffix(".tmp")
        torch.save(open_mapped(source), temporary)
        temporary.replace(target)
        written.append(target)
    return written


def _clear(path: Path) -> None:
    """Remove a folder, or what is in its place; a link leads to what is not the run's."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    try:
        return read_sealed(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; {remedy}") from error
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}; {remedy}") from error


def _check_digest(path: Path, expected: Digest, remedy: str) -> None:
    if not path.exists():
        raise CheckpointError(f"{path} is missing; {remedy}")
    try:
        found = digest_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error}; {remedy}") from error
    if found != expected:
        raise CheckpointError(
            f"{path} is damaged: its size or BLAKE3 digest is not that in {layout.RECORD}; {remedy}"
        )
