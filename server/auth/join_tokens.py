"""Join tokens: secrets that admit clients which have no certificate, kept only as digests.

One JSON file in the run directory. A token admits so many client ids until it expires; those it
has admitted may come again until it is revoked. Knows nothing about sessions or gRPC.
"""

import hmac
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from blake3 import blake3

from common.durable import read_sealed, seal, write_json
from common.errors import CheckpointError, RequestError, Status


@dataclass(frozen=True, kw_only=True)
class JoinToken:
    """What is kept of a token.

    Args:
        token_id: its part before the dot, no secret.
        digest: BLAKE3 of the whole token, hexadecimal.
        expires: seconds since 1970.
        max_clients: client ids that it admits.
        client_ids: those that it has admitted, by the order of their coming.
    """

    token_id: str
    digest: str
    expires: float
    max_clients: int
    client_ids: tuple[str, ...] = ()
    revoked: bool = False


class JoinTokens:
    """The tokens of a run.

    Args:
        path: of the file, which need not be there.
        clock: seconds since 1970.

    Raises:
        CheckpointError: the file is damaged.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._tokens: dict[str, JoinToken] = {}
        if path.exists():
            try:
                kept = [
                    JoinToken(**{**value, "client_ids": tuple(value["client_ids"])})
                    for value in read_sealed(path)["tokens"]
                ]
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"{path} is damaged; put back a copy of it, or move it elsewhere and give the "
                    "clients new join tokens"
                ) from error
            self._tokens = {token.token_id: token for token in kept}

    def create(self, max_clients: int, seconds: float) -> tuple[str, JoinToken]:
        """Return a new token, which is told this once, and what is kept of it."""
        token_id = secrets.token_hex(4)
        text = f"{token_id}.{secrets.token_urlsafe(24)}"
        kept = JoinToken(
            token_id=token_id,
            digest=_digest(text),
            expires=self._clock() + seconds,
            max_clients=max_clients,
        )
        self._keep(kept)
        return text, kept

    def list(self) -> list[JoinToken]:
        """Return all tokens, by their ids."""
        return [self._tokens[token_id] for token_id in sorted(self._tokens)]

    def revoke(self, token_id: str) -> JoinToken:
        """Let a token admit nobody any more, again or anew.

        Raises:
            RequestError: JOIN_TOKEN_UNKNOWN.
        """
        if token_id not in self._tokens:
            message = "there is no such join token"
            raise RequestError(Status.NOT_FOUND, "JOIN_TOKEN_UNKNOWN", message)
        kept = replace(self._tokens[token_id], revoked=True)
        self._keep(kept)
        return kept

    def admit(self, text: str, client_id: str) -> str:
        """Return the id of the token that admits a client.

        Raises:
            RequestError: JOIN_TOKEN_INVALID, or CLIENT_ID_TAKEN by another token.
        """
        if not text:
            message = "this server asks for a join token; get one from its operator"
            raise RequestError(Status.UNAUTHENTICATED, "JOIN_TOKEN_INVALID", message)
        token = self._tokens.get(text.partition(".")[0])
        if token is None or not hmac.compare_digest(_digest(text), token.digest):
            raise _refused("is none of this server's; ask its operator for one")
        if token.revoked:
            raise _refused("was revoked")
        if client_id in token.client_ids:
            return token.token_id
        if token.expires <= self._clock():
            raise _refused("has expired; ask the operator for a new one")
        if len(token.client_ids) >= token.max_clients:
            raise _refused(f"has admitted {token.max_clients}, which is as many as it may")
        holders = [t for t in self._tokens.values() if client_id in t.client_ids and not t.revoked]
        if holders:
            message = f"client id {client_id!r} came with another join token; use another id"
            raise RequestError(Status.PERMISSION_DENIED, "CLIENT_ID_TAKEN", message)
        self._keep(replace(token, client_ids=(*token.client_ids, client_id)))
        return token.token_id

    def _keep(self, token: JoinToken) -> None:
        tokens = {**self._tokens, token.token_id: token}
        write_json(self._path, seal({"tokens": [asdict(kept) for kept in tokens.values()]}))
        self._tokens = tokens


def _digest(text: str) -> str:
    # A token is drawn from 192 bits, so nothing is won by a slow hash.
    return blake3(text.encode(errors="replace")).hexdigest()


def _refused(why: str) -> RequestError:
    message = f"the join token {why}"
    return RequestError(Status.UNAUTHENTICATED, "JOIN_TOKEN_INVALID", message)
