"""The port that Prometheus scrapes: GET /metrics, in threads beside the event loop.

On loopback, and under --insecure, it is plain and open; elsewhere it has the server's certificate,
and asks for what the admin port asks for. Knows nothing about what is measured.
"""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from common.errors import InputError, RequestError, Status
from common.logs import get_logger
from common.tls import Reloading, is_loopback, read_ca, read_pair
from server.auth.callers import Access
from server.options import SecurityOptions

_TIMEOUT_SECONDS = 10.0

log = get_logger()


class MetricsPort:
    """Listens from the beginning; answers once it is told what.

    Args:
        host: of the admin port.
        port: 0 takes a free one.
        access: what operators need elsewhere than on loopback.
        security: the server's files.

    Raises:
        InputError: the port can't be listened on, or must not be.
    """

    def __init__(self, host: str, port: int, access: Access, security: SecurityOptions) -> None:
        self._server = _Server(host, port)
        self.address = f"{host}:{self._server.server_address[1]}"
        if not is_loopback(self.address) and access.credentials is not None:
            self._server.access = access
            self._server.contexts = _contexts(security)

    def serve(self, registry: CollectorRegistry) -> None:
        """Answer from now on."""
        self._server.registry = registry
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def close(self) -> None:
        """Listen no more; takes up to a tenth of a second."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    registry: CollectorRegistry
    # Of a port that other machines reach.
    access: Access | None = None
    contexts: Reloading[ssl.SSLContext] | None = None

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host.strip("[]"), port), _Handler)
        except OSError as error:
            raise InputError(
                f"--metrics-port: can't listen on {host}:{port} ({error.strerror}); "
                "name another port, or 0 for a free one"
            ) from error

    def finish_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Answer one request, in a thread that waits for nobody for long."""
        request.settimeout(_TIMEOUT_SECONDS)
        if self.contexts is None:
            super().finish_request(request, client_address)
            return
        with self.contexts.current().wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002
        """Log bugs only: a scraper may disconnect, or have no certificate."""
        if not isinstance(sys.exception(), OSError):
            log.error("bug in a scrape", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    connection: ssl.SSLSocket

    def do_GET(self) -> None:
        if urlsplit(self.path).path != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND, "the metrics are at /metrics")
            return
        try:
            if self.server.access is not None:
                self.server.access.operators(self)
        except RequestError as error:
            unknown = error.status is Status.UNAUTHENTICATED
            code = HTTPStatus.UNAUTHORIZED if unknown else HTTPStatus.FORBIDDEN
            self.send_error(code, str(error))
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        body = encode(self.server.registry)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """Return the headers, as gRPC names them."""
        return [(name.lower(), value) for name, value in self.headers.items()]

    def auth_context(self) -> dict[str, list[bytes]]:
        """Return the caller's certificate, which the handshake has verified."""
        certificate = self.connection.getpeercert(binary_form=True) or b""
        return {"x509_pem_cert": [ssl.DER_cert_to_PEM_cert(certificate).encode()]}

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def _contexts(security: SecurityOptions) -> Reloading[ssl.SSLContext]:
    """Return the certificate as it is in its files, as the gRPC ports have it."""
    certificate, key = security.tls_cert or Path(), security.tls_key or Path()
    client_ca = security.tls_client_ca

    def read() -> ssl.SSLContext:
        read_pair(certificate, key, ("--tls-cert", "--tls-key"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        if client_ca is not None:
            context.load_verify_locations(cadata=read_ca(client_ca, "--tls-client-ca").decode())
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    files = [path for path in (certificate, key, client_ca) if path is not None]
    return Reloading(files, read)
