"""Certificates: read, checked, and asked whom they stand for."""

import os
import tomllib
from pathlib import Path

import pytest

from client.credentials import channel_credentials, join_token
from client.options import ClientOptions
from client.options import SecurityOptions as ClientSecurity
from common.errors import InputError
from common.tls import Reloading, identity_of, is_loopback, read_ca, read_pair, read_revoked
from scripts import make_certs
from server.auth.callers import open_doors
from server.options import SecurityOptions
from tests import certs

FLAGS = ("--tls-cert", "--tls-key")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return certs.make(tmp_path_factory.mktemp("certs") / "own")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return certs.make(tmp_path_factory.mktemp("certs") / "other", clients=1)


def identity(place):
    return identity_of((place / "cert.pem").read_bytes())


def test_a_certificate_stands_for_whom_its_uris_name(folder):
    assert identity(folder / "clients" / "client-1").clients == {"client-1"}
    assert identity(folder / "operator").operators == {"operator"}
    assert not identity(folder / "operator").clients
    assert not identity(folder / "server").clients


def test_a_range_of_partitions_is_as_many_clients_in_one_certificate(folder):
    make_certs.client("lab", partition="3-5", folder=folder)
    assert identity(folder / "clients" / "lab").clients == {"lab-3", "lab-4", "lab-5"}


def test_keys_are_their_owners_alone(folder):
    keys = list(folder.rglob("key.pem"))
    assert len(keys) >= 5
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}


def test_a_start_up_folder_is_ready_for_its_command(folder):
    values = tomllib.loads((folder / "clients" / "client-1" / "client.toml").read_text())
    assert values == {
        "server": "127.0.0.1:7070",
        "partition": "1",
        "client-id": "client-1",
        "tls-ca": "ca.pem",
        "tls-cert": "cert.pem",
        "tls-key": "key.pem",
    }


def test_a_folder_that_is_not_empty_is_left_alone(folder):
    with pytest.raises(InputError, match=r"--folder: .* is not empty"):
        certs.make(folder)


@pytest.mark.parametrize("name", ["a/b", "../x", "a b", "-", "ä"])
def test_a_name_that_is_no_client_id_gets_no_certificate(folder, name):
    with pytest.raises(InputError, match="is no client id"):
        make_certs.client(name, folder=folder)
    assert not list(folder.rglob("x-*"))


def test_all_certificates_of_a_client_are_revoked_the_older_ones_too(folder):
    make_certs.client("twice", folder=folder)
    first = identity(folder / "clients" / "twice").serial
    make_certs.client("twice", folder=folder)
    second = identity(folder / "clients" / "twice").serial
    make_certs.revoke("twice", folder=folder)
    ca = (folder / "server" / "ca.pem").read_bytes()
    revoked = read_revoked(folder / "server" / "revoked.pem", ca, "--tls-crl")
    assert {first, second} <= revoked
    assert identity(folder / "clients" / "client-0").serial not in revoked


def test_a_key_of_another_certificate_is_refused(folder):
    with pytest.raises(InputError, match=r"--tls-key: .* is not the key of the certificate"):
        read_pair(folder / "server" / "cert.pem", folder / "operator" / "key.pem", FLAGS)


def test_an_expired_certificate_is_refused(folder):
    place = certs.expired_client(folder, "old")
    with pytest.raises(InputError, match=r"--tls-cert: .* is valid from .* to .*; get a new one"):
        read_pair(place / "cert.pem", place / "key.pem", FLAGS)


@pytest.mark.parametrize("text", [None, "", "no PEM", "-----BEGIN CERTIFICATE-----\n!"])
def test_what_is_no_certificate_is_refused_by_its_flag(tmp_path, folder, text):
    path = tmp_path / "cert.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match="--tls-cert"):
        read_pair(path, folder / "server" / "key.pem", FLAGS)
    with pytest.raises(InputError, match="--tls-ca"):
        read_ca(path, "--tls-ca")
    with pytest.raises(InputError, match="--tls-key"):
        read_pair(folder / "server" / "cert.pem", path, FLAGS)
    with pytest.raises(InputError, match="--tls-crl"):
        read_revoked(path, (folder / "server" / "ca.pem").read_bytes(), "--tls-crl")


def test_a_revocation_list_of_another_ca_is_refused(folder, other):
    ca = (folder / "server" / "ca.pem").read_bytes()
    with pytest.raises(InputError, match=r"--tls-crl: .* is not signed by the CA of the clients"):
        read_revoked(other / "server" / "revoked.pem", ca, "--tls-crl")


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:7070", True),
        ("127.8.9.10:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example.org:1", False),
        ("127.0.0.1.example.org:1", False),
    ],
)
def test_only_this_machines_own_addresses_are_loopback(address, loopback):
    assert is_loopback(address) is loopback


def test_a_changed_file_is_read_again_and_a_damaged_one_is_not_taken(tmp_path):
    path = tmp_path / "value"
    reads = []

    def read():
        reads.append(path.read_text())
        if reads[-1] == "damaged":
            raise InputError("damaged")
        return reads[-1]

    def write(text):
        temporary = tmp_path / "new"
        temporary.write_text(text)
        temporary.replace(path)

    write("first")
    reloading = Reloading([path], read)
    assert [reloading.current(), reloading.current()] == ["first", "first"]
    write("damaged")
    assert [reloading.current(), reloading.current()] == ["first", "first"]
    write("second")
    assert reloading.current() == "second"
    path.unlink()
    write("third")
    os.utime(path, (1, 1))
    assert reloading.current() == "third"
    assert reads == ["first", "damaged", "second", "third"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tls_cert": "c"}, "--tls-cert: goes with --tls-key"),
        ({"tls_key": "k"}, "--tls-key: goes with --tls-cert"),
        ({"tls_client_ca": "c"}, "--tls-client-ca: goes with --tls-cert"),
        (
            {"tls_cert": "c", "tls_key": "k", "tls_crl": "r"},
            "--tls-crl: goes with --tls-client-ca",
        ),
        ({"tls_cert": "c", "tls_key": "k", "insecure": True}, "--insecure: goes against"),
    ],
)
def test_options_of_the_server_that_do_not_go_together_are_refused(tmp_path, options, error):
    paths = {k: v if v is True else tmp_path / v for k, v in options.items()}
    with pytest.raises(InputError, match=error):
        open_doors(SecurityOptions(**paths), "token")


def client_options(folder, name="client-0", server="127.0.0.1:1", **changes):
    place = folder / "clients" / name
    files = {f"tls_{x}": place / f"{x}.pem" for x in ("ca", "cert", "key")}
    security = {name: value for name, value in (files | changes).items() if value is not None}
    return ClientOptions(server=server, security=ClientSecurity(**security))


NONE = {"tls_ca": None, "tls_cert": None, "tls_key": None}


@pytest.mark.parametrize(
    ("changes", "client_id", "error"),
    [
        (
            {},
            "client-1",
            "--client-id: this is client-1, and the certificate in .* is for client-0",
        ),
        ({"tls_key": None}, "client-0", "--tls-cert: goes with --tls-key"),
        ({"tls_ca": None}, "client-0", "--tls-cert: goes with --tls-ca"),
        ({"insecure": True}, "client-0", "--insecure: goes against --tls-ca"),
        (
            NONE | {"join_token_file": Path("x")},
            "client-0",
            "--join-token-file: goes with --tls-ca",
        ),
        (NONE | {"server": "10.0.0.1:1"}, "client-0", "--server: 10.0.0.1:1 is another machine"),
    ],
)
def test_a_client_that_can_not_be_let_in_so_is_told_before_it_connects(
    folder, changes, client_id, error
):
    with pytest.raises(InputError, match=error):
        channel_credentials(client_options(folder, **changes), [client_id])


def test_plain_text_goes_to_this_machine_or_where_the_user_insists(folder):
    assert channel_credentials(client_options(folder, **NONE), ["x"]) is None
    insisting = client_options(folder, server="10.0.0.1:1", insecure=True, **NONE)
    assert channel_credentials(insisting, ["x"]) is None


def test_a_join_token_is_what_its_file_holds(tmp_path):
    path = tmp_path / "token"
    token = f"0123abcd.{'s' * 32}"
    path.write_text(f" {token}\n")
    assert join_token(ClientSecurity(join_token_file=path)) == token
    assert join_token(ClientSecurity()) == ""


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "can't read a join token"),
        (b"\xff", "can't read a join token"),
        (b"", "holds no join token"),
        (b"-----BEGIN PRIVATE KEY-----", "holds no join token"),
    ],
)
def test_what_is_no_join_token_is_not_sent_anywhere(tmp_path, text, error):
    path = tmp_path / "token"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(InputError, match=f"--join-token-file: .*{error}"):
        join_token(ClientSecurity(join_token_file=path))


@pytest.mark.parametrize(
    "host", ["", "münchen.de", "https://x.org", "x.org:7070", "*.x", "::", "1.2.3", "-x"]
)
def test_what_is_no_name_or_address_makes_no_certificate(tmp_path, host):
    with pytest.raises(InputError, match=r"--host: .* is no name or address"):
        make_certs.new(host=["good.example.org", host], folder=tmp_path / "certs")
    assert list(tmp_path.iterdir()) == []


def test_a_revocation_list_that_was_lost_is_made_again_by_the_next_revocation(tmp_path):
    place = certs.make(tmp_path / "certs", clients=2)
    serials = {identity(place / "clients" / f"client-{n}").serial for n in (0, 1)}
    make_certs.revoke("client-0", folder=place)
    (place / "server" / "revoked.pem").unlink()
    make_certs.revoke("client-1", folder=place)
    ca = (place / "server" / "ca.pem").read_bytes()
    assert read_revoked(place / "server" / "revoked.pem", ca, "--tls-crl") == serials
