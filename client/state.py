"""What a client keeps from one round to the next, on its own disk: tensors by name.

Each generation belongs to a round. The server says in which round it last counted the client's
update, and that generation is the one that holds; so a crash, a late update or a lost disk can't
leave a client with what the server knows nothing of. Knows nothing about what the tensors mean.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from common.durable import replace_file
from common.errors import RunFailed, TensorError
from common.logs import get_logger
from common.tensors import digest_bytes, encode, views

if TYPE_CHECKING:
    import torch

log = get_logger()


class ClientState:
    """The generations of one client in one run; a file each, named by round and digest.

    Args:
        folder: of all clients that keep something on this machine.
        run_id: the server's name of the run.
        name: of the client, and of what it keeps.
    """

    def __init__(self, folder: Path, run_id: str, name: str) -> None:
        # The server chose the run's name, which must not lead elsewhere.
        run = hashlib.sha256(run_id.encode()).hexdigest()[:16]
        self._folder = folder / f"{name}-{run}"

    def load(self, round_number: int) -> dict[str, torch.Tensor] | None:
        """Return what was kept in a round: nothing in round 0, which begins anew.

        None: it is lost, and a warning says so.
        """
        if round_number == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
            return {}
        for path in self._generations(round_number):
            try:
                data = memoryview(bytearray(path.read_bytes()))
                if path == self._path(round_number, data):
                    return views(data)
            except (OSError, TensorError):
                pass
            log.warning("what was kept is damaged", file=str(path))
        log.warning("what was kept is lost", round=round_number, folder=str(self._folder))
        return None

    def save(self, round_number: int, tensors: Mapping[str, torch.Tensor], previous: int) -> None:
        """Keep tensors as a round's, durably, beside those of the round that last counted.

        Raises:
            RunFailed: the disk is full, or fails.
        """
        data = memoryview(encode(tensors))
        path = self._path(round_number, data)
        kept = {path, *self._generations(previous)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, data)
            for other in set(self._folder.iterdir()) - kept:
                other.unlink(missing_ok=True)
        except OSError as error:
            raise RunFailed(
                f"--state-dir: can't write {error.filename or path}: {error.strerror}"
            ) from error

    def _generations(self, round_number: int) -> list[Path]:
        return list(self._folder.glob(f"{round_number:05d}-*.safetensors"))

    def _path(self, round_number: int, data: memoryview) -> Path:
        digest = digest_bytes(data).blake3[:16]
        return self._folder / f"{round_number:05d}-{digest}.safetensors"
