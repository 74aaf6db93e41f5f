"""The errors that Folkmoot raises on purpose; anything else that escapes is a bug.

    FolkmootError
    ├── InputError          wrong input; a process ends with exit status 2
    │   ├── DataError       data that is missing or can't be read
    │   ├── CheckpointError a file of a run that is missing or damaged
    │   └── UnnamedTask     a run's task whose code nobody here has asked for
    ├── RunFailed           a run that can't go on; exit status 1
    ├── TensorError         bytes that are not the safetensors file they should be
    └── RequestError        a request that is refused, with its canonical status

Each message is one line that names the flag, file or field, and the remedy.
"""

from enum import Enum


class FolkmootError(Exception):
    """The root of the tree."""


class InputError(FolkmootError):
    """Wrong input from the person who started the process."""


class DataError(InputError):
    """Training or test data is missing or can't be read."""


class CheckpointError(InputError):
    """A file of a run directory is missing or damaged."""


class UnnamedTask(InputError):
    """A run's task is its user's own, who has not named it here, too; `task` is its name."""

    def __init__(self, task: str) -> None:
        super().__init__(
            f"the run's task is {task}, whose code would run here; if you trust it, "
            f"add --task {task}"
        )
        self.task = task


class RunFailed(FolkmootError):
    """The run, or this process's part in it, can't go on."""


class TensorError(FolkmootError):
    """Bytes are no valid safetensors file, or not the one that was asked for."""


class Status(Enum):
    """The canonical gRPC codes that Folkmoot uses (https://grpc.io/docs/guides/status-codes/)."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ABORTED = "ABORTED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"


class RequestError(FolkmootError):
    """A request is refused: `status`, and the `reason` named in federated.proto.

    `retry_after`: seconds after which the caller may try again; None if that won't help.
    """

    def __init__(
        self, status: Status, reason: str, message: str, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
