"""What one request, one client and all of them may ask for: the one place for every bound.

Checks take values and raise; nothing is remembered but the pace of joining, and time comes in as
an argument. Knows nothing about messages or sessions.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.bounds import MAX_METRIC_NAME, MAX_METRICS, MAX_TASK_NAME
from common.errors import RequestError, Status
from common.training import Metrics

MAX_CLIENT_ID = 128
_CLIENT_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_CLIENT_ID}}}")
MAX_INSTANCE_ID = 64
MAX_VERSION = 64
MAX_TASK_NAMES = 64
MAX_LEAVE_REASON = 256
MAX_FAILURE_REASON = 64
MAX_FAILURE_MESSAGE = 1024
# Metrics that a run may end by.
_ACCURACIES = frozenset({"accuracy", "fine_tuned_accuracy"})
# Requests that may be unfinished at a time, of all connections, and the seconds that one may take.
MAX_UNFINISHED = 8
UNFINISHED_SECONDS = 10.0
# Calls at a time on one connection; gRPC's clients let the others wait.
MAX_STREAMS = 16
# Connections without a session or an operator: at a time, their seconds, and what one may send.
MAX_STRANGERS = 1000
STRANGER_SECONDS = 20.0
STRANGER_BYTES = 1 << 20
# Models that one session may pull at once: those it has given up may look open for a while.
MAX_PULLS = 4


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The bounds that an operator sets; JoinResponse announces them.

    Args:
        max_update_norm: of an update's floating-point values, L2; None is any finite one.
        max_clients: sessions at a time.
        joins_per_second: in the long run; as many again may come at once.
    """

    max_update_size_bytes: int
    max_examples: int
    max_update_norm: float | None
    max_clients: int
    joins_per_second: float = 500.0


class Pace:
    """Lets so many in per second, and tells each of the others when to come again.

    A leaky bucket as a meter (ITU-T I.371); those who are sent away are told times of their
    own, 1 / `rate` apart, so that they don't come back together.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._level = 0.0
        self._at = -math.inf
        self._told = -math.inf

    def admit(self, now: float) -> float:
        """Return 0 for one who may come in, else after how many seconds to come again.

        >>> pace = Pace(2.0)
        >>> [pace.admit(0.0), pace.admit(0.0), pace.admit(0.0), pace.admit(0.0), pace.admit(1.0)]
        [0.0, 0.0, 0.5, 1.0, 0.0]
        """
        self._level = max(0.0, self._level - (now - self._at) * self._rate)
        self._at = now
        if self._level + 1 <= self._rate:
            self._level += 1
            return 0.0
        self._told = max(self._told, now) + 1 / self._rate
        return self._told - now


def invalid(message: str, reason: str = "FIELD_INVALID") -> RequestError:
    """Return the error for a field outside its bounds."""
    return RequestError(Status.INVALID_ARGUMENT, reason, message)


def check_client_id(value: str) -> None:
    """Check a name that goes into logs and records, and never into a path.

    Raises:
        RequestError: FIELD_INVALID, as of all checks here.
    """
    if not _CLIENT_ID.fullmatch(value):
        raise invalid(f"client_id must be 1 to {MAX_CLIENT_ID} of A-Z a-z 0-9 . _ -")


def check_length(field: str, value: str | bytes, most: int, least: int = 0) -> None:
    """Check how many characters, or bytes, a field has."""
    if not least <= len(value) <= most:
        raise invalid(f"{field} must have {least} to {most} characters")


def check_task_names(names: Sequence[str]) -> None:
    """Check what a client says that it is willing to train."""
    if len(names) > MAX_TASK_NAMES:
        raise invalid(f"task_names holds more than {MAX_TASK_NAMES}")
    for name in names:
        check_length("task_names", name, MAX_TASK_NAME)


def metrics_objection(metrics: Mapping[str, float]) -> str | None:
    """Return why a client's metrics are refused, None if they are not."""
    for name in _ACCURACIES & metrics.keys():
        if not 0 <= metrics[name] <= 1:
            return f"metrics: {name} must be from 0 to 1, not {metrics[name]:g}"
    return numbers_objection("metrics", metrics)


def numbers_objection(field: str, numbers: Mapping[str, float]) -> str | None:
    """Return why numbers by name are refused, None if they are not."""
    if len(numbers) > MAX_METRICS:
        return f"{field} holds more than {MAX_METRICS}"
    if any(not 1 <= len(name) <= MAX_METRIC_NAME for name in numbers):
        return f"{field}: a name must have 1 to {MAX_METRIC_NAME} characters"
    return None if all(map(math.isfinite, numbers.values())) else f"{field} must be finite"


def check_metrics(metrics: Mapping[str, float]) -> Metrics:
    """Return a client's metrics if they are within their bounds."""
    objection = metrics_objection(metrics)
    if objection is not None:
        raise invalid(objection)
    return dict(metrics)
