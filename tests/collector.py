"""A collector of OpenTelemetry's spans, as OTLP over gRPC has them, on a free port."""

from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc


class Collected:
    """A span with its service; ids are hexadecimal, a root's parent is empty."""

    def __init__(self, resource, span):
        self.resource = _values(resource.attributes)
        self.service = self.resource["service.name"]
        self.name = span.name
        self.trace, self.id = span.trace_id.hex(), span.span_id.hex()
        self.parent = span.parent_span_id.hex()
        self.attributes = _values(span.attributes)
        self.began, self.ended = span.start_time_unix_nano, span.end_time_unix_nano
        self.failed = span.status.code == span.status.STATUS_CODE_ERROR


class Collector(pb_grpc.TraceServiceServicer):
    """Keeps what it is sent; a context manager."""

    def __enter__(self):
        self.spans = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        pb_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()

    def Export(self, request, context):  # noqa: N802 - gRPC's name
        for sent in request.resource_spans:
            for scope in sent.scope_spans:
                self.spans += [Collected(sent.resource, span) for span in scope.spans]
        return pb.ExportTraceServiceResponse()


def _values(attributes):
    return {pair.key: _value(pair.value) for pair in attributes}


def _value(value):
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [_value(each) for each in found.values] if kind == "array_value" else found
