"""Structured logs: readable lines for a person, JSON lines for a program and in a file.

Knows nothing about what is logged; callers never pass data or tensors.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from common.printable import printable

Logger = structlog.stdlib.BoundLogger


def configure_logs(file: Path | None = None, *, readable: bool = False) -> None:
    """Log to standard error from now on.

    Args:
        file: to append JSON lines to.
        readable: lines for a person elsewhere than on a terminal, too.

    Raises:
        OSError: the file can't be opened.
    """
    terminal = sys.stderr.isatty()
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    if file is not None:
        processors.append(_JsonFile(file.open("a", encoding="utf-8")))
    if terminal or readable:
        processors.append(_for_a_person)
        processors.append(
            structlog.dev.ConsoleRenderer(colors=terminal, pad_event_to=20, sort_keys=False)
        )
    else:
        processors.append(structlog.processors.JSONRenderer(serializer=json.dumps))
    structlog.configure(processors=processors, logger_factory=_StandardError)


def get_logger() -> Logger:
    """Return the logger; what is bound with `structlog.contextvars` goes into each line."""
    logger: Logger = structlog.get_logger()
    return logger


class _StandardError:
    """Writes to sys.stderr as it is at that moment, so that a progress bar stays below."""

    def __init__(self, *_: object) -> None:
        pass

    def __getattr__(self, _: str) -> Callable[[str], None]:
        return self._write

    def _write(self, message: str) -> None:
        sys.stderr.write(message + "\n")
        sys.stderr.flush()


class _JsonFile:
    """A processor that appends each event to a file and passes it on.

    A full disk must not end what is logged: lines that don't fit are left out of the file.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._failing = False

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        try:
            self._file.write(json.dumps(event, default=str) + "\n")
            self._file.flush()
            self._failing = False
        except OSError as error:
            if not self._failing:
                sys.stderr.write(f"warning: {self._file.name} can't be written: {error.strerror}\n")
            self._failing = True
        return event


def _for_a_person(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        # What another machine said, too. A traceback has lines.
        if isinstance(value, str) and key != "exception":
            event[key] = printable(value)
    event["timestamp"] = event["timestamp"][11:19]
    event.pop("run_id", None)
    if event.get("attempt") == 1:
        del event["attempt"]
    return event
