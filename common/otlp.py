"""Spans recorded by OpenTelemetry's SDK and sent to a collector in batches, from a thread.

Needs the extra "telemetry"; imported by common.tracing alone. A collector that is down costs
nothing but the spans: the queue is bounded, and the log says it once.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common import __version__
from common.logs import get_logger
from common.tracing import OFF, Span, Value

log = get_logger()

_W3C = TraceContextTextMapPropagator()


class Recorder:
    """Begins spans, and sends those that have ended.

    Args:
        endpoint: of the collector.
        service: the process's service.name.
        attributes: of the process.
    """

    def __init__(self, endpoint: str, service: str, attributes: Mapping[str, Value]) -> None:
        sdk = logging.getLogger("opentelemetry")
        sdk.handlers, sdk.propagate = [_SaysOnce(endpoint)], False
        about = {"service.name": service, "service.version": __version__, **_named(attributes)}
        self._provider = TracerProvider(
            resource=Resource.create(about), id_generator=_Ids(), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("folkmoot", __version__)

    def begin(self, name: str, parent: str | None, attributes: Mapping[str, Value]) -> Span:
        """Begin a span: a trace's root, or within the parent, if that is a traceparent."""
        context = None
        if parent is not None:
            context = _W3C.extract({"traceparent": parent})
            if not trace.get_current_span(context).get_span_context().is_valid:
                return OFF
        return _Recorded(self._tracer.start_span(name, context, attributes=_named(attributes)))

    def shut_down(self, seconds: float) -> None:
        """Send what has ended; give up after a while."""
        # The SDK's own limit is half a minute.
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(seconds)


class _Recorded(Span):
    def __init__(self, span: trace.Span) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(span))
        self.traceparent = carrier["traceparent"]

    def note(self, **attributes: Value) -> None:
        if self._span.is_recording():
            self._span.set_attributes(_named(attributes))

    def end(self) -> None:
        if self._span.is_recording():
            self._span.end()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            # The kind alone: a message may tell of files.
            self._span.set_attribute("error.type", kind.__name__)
            self._span.set_status(trace.StatusCode.ERROR)
        self.end()


class _Ids(IdGenerator):
    """Random ids that are no part of Python's random state, which a task's code may seed."""

    def generate_span_id(self) -> int:
        return secrets.randbits(64) or 1

    def generate_trace_id(self) -> int:
        return secrets.randbits(128) or 1


class _SaysOnce(logging.Handler):
    """Logs the first of the SDK's complaints."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(logging.WARNING)
        self._endpoint = endpoint
        self._said = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._said:
            self._said = True
            problem = record.getMessage()
            log.warning("traces get lost", otlp_endpoint=self._endpoint, problem=problem)


def _named(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {f"folkmoot.{name}": value for name, value in attributes.items()}
