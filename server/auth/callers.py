"""Who may call: clients by certificate or, with their session, by join token; operators by either.

The one place where a call's credentials are looked at. Knows nothing about what is called.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable, Container, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import grpc

from common import tls
from common.errors import InputError, RequestError, Status
from common.tls import Identity, Reloading
from server.options import SecurityOptions
from server.storage import layout


class Caller(Protocol):
    """What is looked at of a call: gRPC's context has it, and so has a scrape's request."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the verified certificate of a caller that needs one, as x509_pem_cert."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Return the headers."""


# Returns the client ids that the caller may act for.
Clients = Callable[[Caller], Container[str]]
# Returns if the caller is an operator.
Operators = Callable[[Caller], None]


class Everyone(Container[str]):
    """Any client id: whoever knows the session's token may use it."""

    def __contains__(self, _: object) -> bool:
        return True


class Access(NamedTuple):
    """How a server is reached: its credentials (None is plain text), and what it asks for."""

    credentials: grpc.ServerCredentials | None
    clients: Clients
    operators: Operators
    wants_join_tokens: bool


class Certificates:
    """Callers that hold a certificate, which the handshake has verified.

    Each call is checked, not just each connection: one that was revoked or has expired since is
    refused at once.
    """

    def __init__(self, revoked: Reloading[frozenset[int]] | None) -> None:
        self._revoked = revoked

    def clients(self, context: Caller) -> Container[str]:
        """Return the client ids that the caller's certificate names.

        Raises:
            RequestError: CERTIFICATE_EXPIRED, CERTIFICATE_REVOKED, NOT_A_CLIENT.
        """
        identity = self._identity(context)
        if not identity.clients:
            message = "the certificate names no client (a URI urn:folkmoot:client:ID)"
            raise RequestError(Status.PERMISSION_DENIED, "NOT_A_CLIENT", message)
        return identity.clients

    def operators(self, context: Caller) -> None:
        """Check that the caller's certificate names an operator.

        Raises:
            RequestError: CERTIFICATE_EXPIRED, CERTIFICATE_REVOKED, NOT_AN_OPERATOR.
        """
        if not self._identity(context).operators:
            message = "the certificate names no operator (a URI urn:folkmoot:operator:NAME)"
            raise RequestError(Status.PERMISSION_DENIED, "NOT_AN_OPERATOR", message)

    def _identity(self, context: Caller) -> Identity:
        certificate, *_ = context.auth_context()["x509_pem_cert"]
        identity = tls.identity_of(certificate)
        if identity.expires < datetime.now(UTC):
            message = f"the certificate expired on {identity.expires:%Y-%m-%d}"
            raise RequestError(Status.UNAUTHENTICATED, "CERTIFICATE_EXPIRED", message)
        if self._revoked is not None and identity.serial in self._revoked.current():
            message = "the certificate was revoked"
            raise RequestError(Status.UNAUTHENTICATED, "CERTIFICATE_REVOKED", message)
        return identity


def bearer_of(token: str) -> Operators:
    """Return the check that a caller knows the operator's token."""
    expected = f"Bearer {token}".encode()

    def check(context: Caller) -> None:
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        text = given if isinstance(given, bytes) else str(given).encode()
        if not hmac.compare_digest(text, expected):
            message = f"this needs the operator token: {layout.OPERATOR_TOKEN} of the run directory"
            raise RequestError(Status.UNAUTHENTICATED, "OPERATOR_TOKEN_INVALID", message)

    return check


def open_doors(options: SecurityOptions, operator_token: str) -> Access:
    """Return how the server is reached, by its options.

    Raises:
        InputError: options that don't go together, or a file that is none of the kind.
    """
    _check(options)
    if options.tls_cert is None or options.tls_key is None:
        return Access(None, lambda _: Everyone(), bearer_of(operator_token), False)
    credentials = _credentials(options.tls_cert, options.tls_key, options.tls_client_ca)
    if options.tls_client_ca is None:
        return Access(credentials, lambda _: Everyone(), bearer_of(operator_token), True)
    certificates = Certificates(_revoked(options.tls_crl, options.tls_client_ca))
    return Access(credentials, certificates.clients, certificates.operators, False)


def operator_token(folder: Path) -> str:
    """Return the operator's token of a run: the one in its directory, or a new one."""
    try:
        kept = (folder / layout.OPERATOR_TOKEN).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        kept = ""
    return kept or secrets.token_urlsafe(24)


def keep_secret(path: Path, secret: str) -> None:
    """Write a file that only its owner can read.

    Raises:
        OSError: it can't be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secret + "\n")
    temporary.replace(path)


def _check(options: SecurityOptions) -> None:
    given = {
        "--tls-cert": options.tls_cert,
        "--tls-key": options.tls_key,
        "--tls-client-ca": options.tls_client_ca,
        "--tls-crl": options.tls_crl,
    }
    for flag, needed in (
        ("--tls-key", "--tls-cert"),
        ("--tls-cert", "--tls-key"),
        ("--tls-client-ca", "--tls-cert"),
        ("--tls-crl", "--tls-client-ca"),
    ):
        if given[flag] is not None and given[needed] is None:
            raise InputError(f"{flag}: goes with {needed}, which is not given")
    if options.insecure and options.tls_cert is not None:
        raise InputError("--insecure: goes against --tls-cert; leave one of them out")


def _credentials(certificate: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    """Return credentials that each new connection takes from the files as they are then."""

    def read() -> grpc.ServerCertificateConfiguration:
        pair = tls.read_pair(certificate, key, ("--tls-cert", "--tls-key"))
        ca = tls.read_ca(client_ca, "--tls-client-ca") if client_ca is not None else None
        return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], ca)

    files = [path for path in (certificate, key, client_ca) if path is not None]
    reloading = Reloading(files, read)
    return grpc.dynamic_ssl_server_credentials(
        reloading.current(), reloading.current, require_client_authentication=client_ca is not None
    )


def _revoked(path: Path | None, client_ca: Path) -> Reloading[frozenset[int]] | None:
    if path is None:
        return None

    def read() -> frozenset[int]:
        ca = tls.read_ca(client_ca, "--tls-client-ca")
        return tls.read_revoked(path, ca, "--tls-crl")

    return Reloading([path, client_ca], read)
