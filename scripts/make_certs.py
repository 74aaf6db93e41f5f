"""Makes the certificates of a federation: a CA, a server's, an operator's, and each client's.

Each goes into a folder of its own, ready to be carried to its machine, with a .toml for --config.
Certificates are X.509 (RFC 5280) over P-256; whom one stands for, `common.tls` says.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cyclopts import Parameter
from cyclopts.validators import Number

from client.options import ClientOptions, client_ids
from common.commands import command
from common.errors import InputError
from common.tls import CLIENT, OPERATOR
from scripts.cli import command_line, run_app

_PORT = 7070
# RFC 1123, section 2.1; not all digits and dots, which are an address. 0.0.0.0 is no address.
_HOST = re.compile(r"(?=.*[A-Za-z])([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.(?=.)|$))+")
# As federated.proto has it; the first is no dot or dash, since it names a folder, too.
_CLIENT_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HERE = ("localhost", "127.0.0.1", "::1")
# Beside the CA: who got which certificate, so that all of a client's can be revoked.
_ISSUED = "issued.jsonl"
# Clocks differ.
_BEFORE = timedelta(minutes=5)

app = command_line(
    "make_certs",
    "Makes a CA and the certificates that it signs: for a server, its operator, its clients.",
)

Folder = Annotated[Path, Parameter(help="Where all of them are kept.")]
Hosts = Annotated[list[str], Parameter(help="Name or address of the server, as clients say it.")]
Count = Annotated[int, Parameter(help="Make client-0, client-1, ...", validator=Number(gte=0))]
Days = Annotated[
    int, Parameter(help="How long the certificates are valid.", validator=Number(gte=1))
]


class _Authority(NamedTuple):
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@app.command
def new(
    *,
    host: Hosts,
    clients: Count = 0,
    folder: Folder = Path("certs"),
    days: Days = 365,
) -> None:
    """Make a CA, and certificates for the server, its operator, and clients."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"--folder: {folder} is not empty; name another, or use `client`")
    names = _server_names(host)
    authority = _make_authority(folder / "ca", days)
    _issue_server(authority, names, folder, days)
    _publish(authority, folder / "public")
    place = folder / "server"
    _write_revoked(authority, place / "revoked.pem", [])
    _write_toml(
        place / "server.toml",
        {
            "bind": f"0.0.0.0:{_PORT}",
            "tls-cert": "cert.pem",
            "tls-key": "key.pem",
            "tls-client-ca": "ca.pem",
            "tls-crl": "revoked.pem",
        },
    )
    uri = x509.UniformResourceIdentifier(f"{OPERATOR}operator")
    usage = ExtendedKeyUsageOID.CLIENT_AUTH
    _issue(authority, folder / "operator", "operator", [uri], usage, days)
    (folder / "server_address").write_text(f"{host[0]}:{_PORT}\n", encoding="utf-8")
    print(f"server:   python -m server --config {place}/server.toml")
    print(f"operator: {command('admin')} status --certs {folder}/operator")
    for number in range(clients):
        client(f"client-{number}", partition=str(number), folder=folder, days=days)


@app.command
def server(
    *,
    host: Hosts,
    folder: Folder = Path("certs"),
    days: Days = 365,
) -> None:
    """Make a new certificate for the server, which takes it without a restart."""
    _issue_server(_load_authority(folder / "ca"), _server_names(host), folder, days)
    print(f"renewed in {folder / 'server'}; a server on another machine needs a copy of it")


@app.command
def client(
    name: str,
    *,
    partition: Annotated[str, Parameter(help="Its --partition, e.g. 3 or 0-9.")] = "0",
    folder: Folder = Path("certs"),
    days: Days = 365,
) -> None:
    """Make a start-up folder for one more client, or a new certificate for one that has one."""
    authority = _load_authority(folder / "ca")
    ids = client_ids(ClientOptions(client_id=name, partition=partition)).values()
    for client_id in ids:
        if not _CLIENT_ID.fullmatch(client_id):
            raise InputError(f"{client_id!r} is no client id: use 1 to 128 of A-Z a-z 0-9 . _ -")
    place = folder / "clients" / name
    uris = [x509.UniformResourceIdentifier(CLIENT + client_id) for client_id in ids]
    serial = _issue(authority, place, name, uris, ExtendedKeyUsageOID.CLIENT_AUTH, days)
    with (folder / "ca" / _ISSUED).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"client": name, "serial": serial}) + "\n")
    _write_toml(
        place / "client.toml",
        {
            "server": (folder / "server_address").read_text(encoding="utf-8").strip(),
            "partition": partition,
            "client-id": name,
            "tls-ca": "ca.pem",
            "tls-cert": "cert.pem",
            "tls-key": "key.pem",
        },
    )
    print(f"client:   python -m client --config {place}/client.toml")


@app.command
def revoke(name: str, *, folder: Folder = Path("certs")) -> None:
    """Turn a client out: a running server refuses it from now on."""
    authority = _load_authority(folder / "ca")
    issued = folder / "ca" / _ISSUED
    text = issued.read_text(encoding="utf-8") if issued.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    own = [line["serial"] for line in lines if line["client"] == name]
    if not own:
        raise InputError(f"no certificate was made for {name!r} in {folder}")
    revoked = [line["serial"] for line in lines if line.get("revoked")]
    with issued.open("a", encoding="utf-8") as file:
        for serial in own:
            line = {"client": name, "serial": serial, "revoked": True}
            file.write(json.dumps(line) + "\n")
    listed = folder / "server" / "revoked.pem"
    _write_revoked(authority, listed, [*revoked, *own])
    print(f"revoked in {listed}; a server on another machine needs a copy of it")


def _server_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """Return what a server's certificate names: what it is called, and this machine."""
    for host in hosts:
        if not _HOST.fullmatch(host) and not _is_address(host):
            raise InputError(
                f"--host: {host!r} is no name or address; e.g. server.example.org or 10.0.0.5"
            )
    return [_subject_name(name) for name in dict.fromkeys([*hosts, *_HERE])]


def _issue_server(
    authority: _Authority, names: Sequence[x509.GeneralName], folder: Path, days: int
) -> None:
    usage = ExtendedKeyUsageOID.SERVER_AUTH
    _issue(authority, folder / "server", str(names[0].value), names, usage, days)


def _make_authority(folder: Path, days: int) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own, so that none is taken for another where both are trusted.
    name = _common_name(f"Folkmoot CA {secrets.token_hex(4)}")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True)
    _write_key(folder / "key.pem", key)
    _write(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM))
    return _Authority(certificate, key)


def _load_authority(folder: Path) -> _Authority:
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "key.pem").read_bytes(), None)
    except (OSError, ValueError) as error:
        raise InputError(f"--folder: there is no CA in {folder}; make one with `new`") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"--folder: the key in {folder} is not one that `new` makes")
    return _Authority(certificate, key)


def _issue(
    authority: _Authority,
    folder: Path,
    name: str,
    names: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    days: int,
) -> int:
    """Write a new key, its certificate, and the CA's into a folder; return the serial number."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(_common_name(name), authority.certificate.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    _write_key(folder / "key.pem", key)
    _write(folder / "cert.pem", certificate.public_bytes(serialization.Encoding.PEM))
    _publish(authority, folder)
    return certificate.serial_number


def _publish(authority: _Authority, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "ca.pem", authority.certificate.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + timedelta(days=days))
    )


def _write_revoked(authority: _Authority, path: Path, serials: Sequence[int]) -> None:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now)
        .next_update(authority.certificate.not_valid_after_utc)
    )
    for serial in dict.fromkeys(serials):
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
        builder = builder.add_revoked_certificate(revoked.build())
    signed = builder.sign(authority.key, hashes.SHA256())
    _write(path, signed.public_bytes(serialization.Encoding.PEM))


def _common_name(name: str) -> x509.Name:
    # At most 64 characters; nobody is known by it.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _is_address(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _subject_name(host: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(host)) if _is_address(host) else x509.DNSName(host)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(path, text, 0o600)


def _write(path: Path, text: bytes, mode: int = 0o644) -> None:
    """Replace a file at once, so that a running server reads the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(text)
    temporary.replace(path)


def _write_toml(path: Path, values: dict[str, str]) -> None:
    # A JSON string is a TOML one.
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in values.items()]
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_app(app))
