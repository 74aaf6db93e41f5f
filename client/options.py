"""The client's options: one frozen dataclass for each group of `python -m client --help`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Group, Parameter

from common.errors import InputError
from common.option_types import Positive, PositiveFloat


@Parameter(name="*", group=Group("Security", sort_key=2), negative=())
@dataclass(frozen=True, kw_only=True)
class SecurityOptions:
    """How the client knows the server, and the server the client; files are PEM."""

    tls_ca: Path | None = None
    "CA of the server's certificate. It turns on TLS."
    tls_cert: Path | None = None
    "Certificate of the client, if the server requires one."
    tls_key: Path | None = None
    "Private key of the certificate."
    join_token_file: Path | None = None
    "File with the join token, if the server requires one."
    insecure: bool = False
    "Connect in plain text to a server on another machine."


@Parameter(name="*", group=Group("Client", sort_key=1), negative=())
@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """Who the client is, whom it serves, and what it uses."""

    partition: str | None = None
    "Partition of this client, e.g. 3; or a range, e.g. 0-9: ten clients in this process. Required."
    server: str = "127.0.0.1:7070"
    "Address of the server, HOST:PORT."
    task: str | None = None
    "The only task that this client trains. Default: any built-in task."
    strategy: str | None = None
    "Your own strategy, package.module:Class, if it has a client half. Built-in ones need no flag."
    data_dir: Path = Path("data")
    "Folder of the training data, for tasks that read files."
    state_dir: Path = Path("client-state")
    "Folder for state that the client keeps between rounds (SCAFFOLD, --local-layers)."
    client_id: str | None = None
    "Stable client id; with a range, its prefix. Default: client-PARTITION."
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    "Device to train on; auto is CUDA, else MPS, else the CPU."
    threads: Positive = 1
    "Torch threads. Use 1 if several clients train on one machine; more is ten times slower."
    max_wait: PositiveFloat = 600.0
    "Seconds to retry while the server can't be reached."
    otlp_endpoint: str | None = None
    "OpenTelemetry collector for this client's part of the traces, as http://HOST:4317."
    config: Path | None = None
    "TOML file with any of these options. Flags and FOLKMOOT_… variables take precedence."
    security: SecurityOptions = SecurityOptions()


def check_address(address: str) -> None:
    """Check --server, before anything else is made of it.

    Raises:
        InputError: it is not HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    known = bool(host) and (bracketed or ":" not in host)
    if not (known and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise InputError(f"--server: {address!r} is not HOST:PORT, e.g. 127.0.0.1:7070")


def partitions(text: str | None) -> range:
    """Return the partitions that "3" or "0-9" names.

    Raises:
        InputError: it names none.
    """
    if text is None:
        raise InputError(
            "--partition: say which part of the data this client holds, e.g. --partition 0"
        )
    first, dash, last = text.partition("-")
    if not (first.isdecimal() and (last.isdecimal() or not dash)):
        raise InputError(f"--partition: {text!r} is neither a number such as 3 nor a range 0-9")
    found = range(int(first), int(last if dash else first) + 1)
    if not found:
        raise InputError(f"--partition: the range {text} is empty; write the smaller number first")
    return found


def client_ids(options: ClientOptions) -> dict[int, str]:
    """Return the client id of each partition that the process holds.

    Raises:
        InputError: --partition names none.
    """
    held = partitions(options.partition)
    if options.client_id is not None and len(held) == 1:
        return {held[0]: options.client_id}
    return {index: f"{options.client_id or 'client'}-{index}" for index in held}
