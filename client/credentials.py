"""What a client shows to the server, and by what it knows it: certificates and join tokens.

Wrong ones are found here, before anything is sent. Knows nothing about calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import grpc

from client.options import ClientOptions, SecurityOptions
from common.errors import InputError
from common.tls import identity_of, is_loopback, read_ca, read_pair

_JOIN_TOKEN = re.compile(r"[0-9a-f]{8}\.[A-Za-z0-9_-]{32}")


def channel_credentials(
    options: ClientOptions, client_ids: Iterable[str]
) -> grpc.ChannelCredentials | None:
    """Return the credentials for the server, None for plain text.

    Raises:
        InputError: files that are none of the kind, a certificate for another client, or plain
            text to another machine without --insecure.
    """
    given = options.security
    if given.tls_ca is None:
        for flag, value in (
            ("--tls-cert", given.tls_cert),
            ("--tls-key", given.tls_key),
            ("--join-token-file", given.join_token_file),
        ):
            if value is not None:
                raise InputError(f"{flag}: goes with --tls-ca, which is not given")
        if not given.insecure and not is_loopback(options.server):
            raise InputError(
                f"--server: {options.server} is another machine, and all would travel in plain "
                "text; name the server's CA with --tls-ca, or say --insecure"
            )
        return None
    if given.insecure:
        raise InputError("--insecure: goes against --tls-ca; leave one of them out")
    ca = read_ca(given.tls_ca, "--tls-ca")
    if given.tls_cert is None and given.tls_key is None:
        return grpc.ssl_channel_credentials(ca)
    if given.tls_cert is None or given.tls_key is None:
        raise InputError("--tls-cert: goes with --tls-key; give both or none")
    pair = read_pair(given.tls_cert, given.tls_key, ("--tls-cert", "--tls-key"))
    named = identity_of(pair.certificate).clients
    for client_id in client_ids:
        if client_id not in named:
            whose = ", ".join(sorted(named)) or "no client"
            raise InputError(
                f"--client-id: this is {client_id}, and the certificate in {given.tls_cert} is "
                f"for {whose}"
            )
    return grpc.ssl_channel_credentials(ca, pair.key, pair.certificate)


def join_token(options: SecurityOptions) -> str:
    """Return the join token, empty if there is none.

    Raises:
        InputError: its file can't be read, or holds something else.
    """
    path = options.join_token_file
    if path is None:
        return ""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise InputError(f"--join-token-file: can't read a join token from {path}") from error
    # Whatever else the file holds, such as a key, is not for the server to see.
    if not _JOIN_TOKEN.fullmatch(token):
        raise InputError(f"--join-token-file: {path} holds no join token (ID.SECRET)")
    return token
