"""An operator's connection to a server's Admin service: its address, token and certificates.

Knows nothing about what is asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from common.algorithms.registry import named_again
from common.errors import InputError
from common.tasks.registry import naming
from common.tls import read_ca, read_pair
from server.storage import layout
from server.storage.run_files import RunFiles, is_running

_KEEPALIVE = [("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000)]


class Where(NamedTuple):
    """A server's admin address, and what an operator shows there."""

    address: str
    token: str = ""
    # A folder with ca.pem and, for a server that asks for certificates, cert.pem and key.pem.
    certs: Path | None = None


def server_of(run_dir: Path, certs: Path | None = None) -> Where:
    """Return the server that runs a run directory, with the operator's token in it.

    Raises:
        InputError: no server does.
    """
    try:
        ready = json.loads((run_dir / layout.READY).read_text(encoding="utf-8"))
        token = (run_dir / layout.OPERATOR_TOKEN).read_text(encoding="ascii").strip()
        where = Where(str(ready["admin_address"]), token, certs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--run-dir: no server is running in {run_dir}") from error
    if not is_running(run_dir):
        options = RunFiles(run_dir).options
        own = naming(str(options.get("task", "digits")))
        own += named_again(str(options.get("strategy", "fedavg")))
        again = f"python -m server --run-dir {run_dir} --resume{own}"
        raise InputError(f"the server of {run_dir} was killed; go on with: {again}")
    return where


def newest_server(runs: Path) -> Path:
    """Return the run directory in `runs` whose server was started last.

    Raises:
        InputError: there is none.
    """
    found = list(runs.glob(f"*/{layout.READY}"))
    if not found:
        raise InputError(f"--run-dir: no server is running in {runs}/; name its run directory")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def connect(where: Where) -> grpc.Channel:
    """Return a channel whose calls show the operator's token.

    Raises:
        InputError: a file in `where.certs` is none of the kind.
    """
    if where.certs is None:
        channel = grpc.insecure_channel(where.address, options=_KEEPALIVE)
    else:
        channel = grpc.secure_channel(where.address, _credentials(where.certs), options=_KEEPALIVE)
    return grpc.intercept_channel(channel, _ShowToken(where.token)) if where.token else channel


def reason(error: grpc.RpcError) -> str:
    """Return why a call failed; where there is no server, without how gRPC came to know."""
    details = str(error.details())
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return details
    broken = re.fullmatch(r"Stream removed \((.*)\)", details)
    return (broken[1] if broken else details).rpartition(":")[2].strip()


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata with which an operator calls."""
    return (("authorization", f"Bearer {token}"),)


def _credentials(certs: Path) -> grpc.ChannelCredentials:
    ca = read_ca(certs / "ca.pem", "--certs")
    if not (certs / "cert.pem").exists():
        return grpc.ssl_channel_credentials(ca)
    pair = read_pair(certs / "cert.pem", certs / "key.pem", ("--certs", "--certs"))
    return grpc.ssl_channel_credentials(ca, pair.key, pair.certificate)


class _ShowToken(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Adds the token to each call."""

    def __init__(self, token: str) -> None:
        self._metadata = bearer(token)

    def _show(
        self,
        continuation: Callable[..., Any],
        client_call_details: Any,  # noqa: ANN401
        request: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        shown = [*(client_call_details.metadata or ()), *self._metadata]
        return continuation(client_call_details._replace(metadata=shown), request)

    intercept_unary_unary = intercept_unary_stream = _show
