"""Traces: nothing without them, and one line where they can't be."""

import subprocess
import sys

import pytest

from common import tracing
from common.errors import InputError


def test_without_an_endpoint_a_span_is_nothing_and_nothing_is_imported():
    program = """
import sys
from common import tracing
tracing.configure(None, "none")
with tracing.trace("round", round=1) as root, tracing.span("train", root.traceparent) as span:
    span.note(examples=1)
assert root is span is tracing.OFF
tracing.shut_down()
assert not any(name.startswith(("opentelemetry", "grpc")) for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    "endpoint",
    [
        *("", "127.0.0.1:4317", "http://127.0.0.1", "http://:4317", "ftp://a:4317", "http://a:x"),
        *("http://user:secret@a:4317", "http://a:4317/v1/traces", "http://a:4317?key=secret"),
    ],
)
def test_what_is_no_endpoint_is_refused_by_the_flags_name(endpoint):
    with pytest.raises(InputError, match=r"^--otlp-endpoint: .* is not http://HOST:PORT"):
        tracing.configure(endpoint, "none")


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc", None)
    with pytest.raises(InputError, match=r"^--otlp-endpoint needs the extra \"telemetry\": "):
        tracing.configure("http://127.0.0.1:4317", "none")
