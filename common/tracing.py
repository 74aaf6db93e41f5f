"""Traces of rounds, where they are asked for: spans that may cross processes.

Until `configure` is called with an endpoint, a span is one shared object that does nothing. Where
a span is to be continued elsewhere, its `traceparent` (W3C Trace Context) goes there. Attributes
are names and numbers; never data, paths or secrets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from common.errors import InputError
from common.extras import require

if TYPE_CHECKING:
    from typing import Self

    from common.otlp import Recorder

Value = str | bool | int | float | Sequence[str]

_recorder: Recorder | None = None


class Span:
    """One that nobody records; as a context manager, it ends there."""

    traceparent = ""

    def note(self, **attributes: Value) -> None:
        """Add attributes; after its end, none."""

    def end(self) -> None:
        """End it; again is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end()


OFF = Span()


def configure(endpoint: str | None, service: str, **attributes: Value) -> None:
    """Record from now on, in this process; without an endpoint, do nothing.

    Args:
        endpoint: of an OpenTelemetry collector (OTLP over gRPC), as http(s)://HOST:PORT.
        service: the name of what the process is.
        attributes: of the process.

    Raises:
        InputError: the endpoint is none, or OpenTelemetry is not installed.
    """
    global _recorder  # noqa: PLW0603 - one a process, as the log
    if endpoint is None:
        return
    if not _is_endpoint(endpoint):
        raise InputError(
            f"--otlp-endpoint: {endpoint!r} is not http://HOST:PORT or https://HOST:PORT, "
            "e.g. http://127.0.0.1:4317"
        )
    require("telemetry", "--otlp-endpoint", "opentelemetry.exporter.otlp.proto.grpc")
    from common.otlp import Recorder

    _recorder = Recorder(endpoint, service, attributes)


def trace(name: str, **attributes: Value) -> Span:
    """Begin a trace, with its root span."""
    return OFF if _recorder is None else _recorder.begin(name, None, attributes)


def span(name: str, parent: str, **attributes: Value) -> Span:
    """Begin a span within that of a traceparent; where that is empty, none."""
    if _recorder is None or not parent:
        return OFF
    return _recorder.begin(name, parent, attributes)


def shut_down() -> None:
    """Send what is recorded, for two seconds at most; for the end of a process."""
    if _recorder is not None:
        _recorder.shut_down(2.0)


def _is_endpoint(text: str) -> bool:
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and bool(parts.port)
    except ValueError:
        return False
    return known and parts.path in ("", "/") and "@" not in text and not parts.query
