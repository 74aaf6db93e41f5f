"""Certificates as PEM files: read, checked, and asked who their holder is.

A holder is named by the URIs of the subject alternative name (RFC 5280, section 4.2.1.6):
urn:folkmoot:client:CLIENT_ID, once or more, or urn:folkmoot:operator:NAME. Knows nothing about
gRPC or connections.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from common.errors import InputError
from common.logs import get_logger

T = TypeVar("T")

CLIENT = "urn:folkmoot:client:"
OPERATOR = "urn:folkmoot:operator:"

log = get_logger()


@dataclass(frozen=True)
class Identity:
    """Whom a certificate stands for, until when, and its serial number."""

    clients: frozenset[str]
    operators: frozenset[str]
    serial: int
    expires: datetime


class KeyPair(NamedTuple):
    """A certificate (with those that lead to its CA, if any) and its private key, as PEM."""

    certificate: bytes
    key: bytes


@lru_cache(maxsize=4096)
def identity_of(certificate: bytes) -> Identity:
    """Return whom a PEM certificate, which was verified already, stands for.

    Raises:
        ValueError: it is no certificate.
    """
    parsed = x509.load_pem_x509_certificate(certificate)
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []

    def named(prefix: str) -> frozenset[str]:
        return frozenset(uri.removeprefix(prefix) for uri in uris if uri.startswith(prefix))

    expires = parsed.not_valid_after_utc
    return Identity(named(CLIENT), named(OPERATOR), parsed.serial_number, expires)


def read_pair(certificate: Path, key: Path, flags: tuple[str, str]) -> KeyPair:
    """Return a certificate and its key.

    Args:
        certificate: a PEM file.
        key: a PEM file.
        flags: the options that name them, for the error.

    Raises:
        InputError: one can't be read, they don't belong together, or the certificate is not valid
            today.
    """
    pair = KeyPair(_read(certificate, flags[0]), _read(key, flags[1]))
    parsed = _certificates(pair.certificate, certificate, flags[0])[0]
    try:
        private = load_pem_private_key(pair.key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"{flags[1]}: {key} is no unencrypted private key in PEM") from error
    if private.public_key() != parsed.public_key():
        raise InputError(f"{flags[1]}: {key} is not the key of the certificate in {certificate}")
    now = datetime.now(UTC)
    if not parsed.not_valid_before_utc <= now <= parsed.not_valid_after_utc:
        raise InputError(
            f"{flags[0]}: {certificate} is valid from {parsed.not_valid_before_utc:%Y-%m-%d} to "
            f"{parsed.not_valid_after_utc:%Y-%m-%d}; get a new one, and look at the clock"
        )
    return pair


def read_ca(path: Path, flag: str) -> bytes:
    """Return the certificates of a CA as PEM.

    Raises:
        InputError: the file can't be read, or holds none.
    """
    text = _read(path, flag)
    _certificates(text, path, flag)
    return text


def read_revoked(path: Path, ca: bytes, flag: str) -> frozenset[int]:
    """Return the serial numbers in a PEM certificate revocation list (RFC 5280, section 5).

    Raises:
        InputError: the file can't be read, or is no list that a certificate in `ca` signed.
    """
    try:
        revoked = x509.load_pem_x509_crl(_read(path, flag))
    except ValueError as error:
        raise InputError(f"{flag}: {path} is no certificate revocation list in PEM") from error
    issuers = [c for c in x509.load_pem_x509_certificates(ca) if c.subject == revoked.issuer]
    if not any(revoked.is_signature_valid(issuer.public_key()) for issuer in issuers):  # type: ignore[arg-type]
        raise InputError(f"{flag}: {path} is not signed by the CA of the clients")
    return frozenset(entry.serial_number for entry in revoked)


def is_loopback(address: str) -> bool:
    """Say whether HOST:PORT names this machine only.

    >>> [is_loopback(a) for a in ("127.0.0.1:1", "[::1]:1", "localhost:1", "0.0.0.0:1", "a.b:1")]
    [True, True, True, False, False]
    """
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Reloading(Generic[T]):
    """A value that is read from files, and read again when one of them changes.

    What can't be read then is logged, and the value of before stays.

    Args:
        paths: the files.
        read: reads them.

    Raises:
        InputError: by `read`, at first.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = paths
        self._read = read
        self._seen = self._state()
        self._value = read()

    def current(self) -> T:
        """Return the value of the files as they are now."""
        state = self._state()
        if state != self._seen:
            self._seen = state
            try:
                self._value = self._read()
                log.info("certificates read again", files=[str(path) for path in self._paths])
            except InputError as error:
                log.warning("certificates can't be read; the old ones stay", problem=str(error))
        return self._value

    def _state(self) -> list[tuple[int, int] | None]:
        return [_state_of(path) for path in self._paths]


def _state_of(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino


def _read(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{flag}: can't read {path}: {error.strerror}") from error


def _certificates(text: bytes, path: Path, flag: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(text)
    except ValueError as error:
        raise InputError(f"{flag}: {path} holds no certificate in PEM") from error
