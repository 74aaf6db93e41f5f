"""What clients are offered: the models, what goes with them, and what an update to them must be."""

from common.algorithms import Algorithm
from common.algorithms.base import Scalars
from common.bounds import BLAKE3, MAX_METRIC_NAME
from common.errors import RequestError, Status
from common.printable import printable
from common.seeds import derive_seed
from common.tensors import Digest
from server.engine.engine import RunView
from server.engine.events import Phase
from server.run.assignments import Assignment
from server.run.limits import metrics_objection, numbers_objection
from server.run.settings import RunSettings
from server.run.uploads import Announcement
from server.storage.checkpoints import ModelFile, Record, RunDirectory


class Offers:
    """The models that clients may pull: the last committed one and, for a while, its candidate.

    Args:
        record: the last committed round.
    """

    def __init__(
        self, settings: RunSettings, algorithm: Algorithm, directory: RunDirectory, record: Record
    ) -> None:
        self._settings = settings
        self.algorithm = algorithm
        self._directory = directory
        path = directory.model_path(record.round)
        self.commit(record, ModelFile(record.round, path, record.model))

    def offer(self, candidate: ModelFile) -> None:
        """Let clients pull a model that is not committed yet."""
        self._models[candidate.version] = candidate

    def commit(self, record: Record, model: ModelFile) -> None:
        """Offer a committed round's model, and no other."""
        self.record, self._models = record, {model.version: model}

    def model(self, version: int) -> ModelFile:
        """Return a model that clients may pull.

        Raises:
            RequestError: MODEL_UNKNOWN.
        """
        if version not in self._models:
            message = f"model {version} is not offered; poll for an assignment"
            raise RequestError(Status.NOT_FOUND, "MODEL_UNKNOWN", message)
        return self._models[version]

    @property
    def newest_model(self) -> ModelFile:
        """The last committed model."""
        return self._models[self.record.round]

    def payload(self, version: int, name: str) -> ModelFile:
        """Return what clients may pull beside a model, by its name.

        Raises:
            RequestError: MODEL_UNKNOWN.
        """
        self.model(version)
        if name not in self.payloads(version):
            message = f"model {version} has no payload {printable(name, MAX_METRIC_NAME)!r}"
            raise RequestError(Status.NOT_FOUND, "MODEL_UNKNOWN", message)
        return ModelFile(
            version, self._directory.state_path(version, name), self.record.state[name]
        )

    def payloads(self, version: int) -> dict[str, Digest]:
        """Return the digests of what clients may pull beside a model, by name."""
        half, held = self.algorithm.client, self.record.state
        if half is None or version != self.record.round:
            return {}
        return {name: held[name] for name in half.payloads if name in held}

    @property
    def scalars(self) -> Scalars:
        """What the algorithm tells the clients beside its payloads."""
        return self.algorithm.scalars(self.record.notes)

    def previous_round(self, client_id: str, view: RunView) -> int:
        """Return the last round that counted an update of a client; 0: none.

        While a round's model is evaluated, that round is one of them.
        """
        if view.phase is Phase.EVALUATING and client_id in view.accepted:
            return view.round
        return self.record.contributed.get(client_id, 0)

    def seed_of(self, assignment: Assignment) -> int:
        """Return the seed of every random choice in an assignment's work."""
        return derive_seed(
            self._settings.seed, assignment.work.value, assignment.round, assignment.client_id
        )

    def objection(self, assignment: Assignment, announcement: Announcement) -> str | None:
        """Return why the announced update is invalid, None if it is not."""
        base = self._models.get(announcement.base_version)
        limits = self._settings.limits
        if not 1 <= announcement.num_examples <= limits.max_examples:
            most = limits.max_examples
            return f"num_examples must be 1 to {most} (the server's --max-examples)"
        size = announcement.digest.size_bytes
        if not BLAKE3.fullmatch(announcement.digest.blake3):
            return "digest.blake3 must be 64 lower-case hexadecimal digits"
        if not 0 <= size <= limits.max_update_size_bytes:
            return f"the update has {size} bytes, the limit is {limits.max_update_size_bytes}"
        if base is None or base.version != assignment.model_version:
            return f"base_model must be version {assignment.model_version}"
        if base.digest != announcement.base_digest:
            return "base_model's digest is not that of the model that was handed out"
        training = self._settings.training
        most_steps = training.local_epochs * -(-announcement.num_examples // training.batch_size)
        return (
            metrics_objection(announcement.metrics)
            or numbers_objection("scalars", announcement.scalars)
            or self.algorithm.objection(announcement.scalars, most_steps)
        )
