"""A round with mutual TLS, against the same round in plain text.

Both servers take turns in one run, with clients in two processes that do not train.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from scripts.benchmarks.measurements import Figure
from scripts.benchmarks.rounds import Case
from scripts.testbed.servers import Watched, client_of, folder, serving
from scripts.testbed.tasks import SIZES

_TIMES = 2


_FULL = [Case("1.66M", 10, 20, together=5), Case("25M", 2, 10), Case("100M", 2, 5)]
_SMALL = [Case("1.66M", 2, 10)]


def measure(small: bool) -> Iterator[Figure]:
    """Yield each case's seconds and CPU seconds with TLS, beside those without."""
    with folder() as place:
        certs = place / "certs"
        clients = max(case.clients for case in _FULL)
        _make_certs("new", "--host", "127.0.0.1", "--folder", certs)
        _make_certs("client", "client", "--partition", f"0-{clients - 1}", "--folder", certs)
        for case in _SMALL if small else _FULL:
            yield from _measure(case, certs, 1 if small else _TIMES)


def _measure(case: Case, certs: Path, times: int) -> Iterator[Figure]:
    plain, secure = [], []
    for _ in range(times):
        plain.append(_run(case, (), ()))
        server, client = certs / "server", certs / "clients" / "client"
        secure.append(
            _run(
                case,
                ("--tls-client-ca", server / "ca.pem", *_pair(server)),
                ("--tls-ca", client / "ca.pem", *_pair(client)),
            )
        )
    sizes = {"parameters": SIZES[case.model], "clients": case.clients}
    for name, part in (("round", "round_seconds"), ("round, CPU", "round_cpu_seconds")):
        floor, value = (min(getattr(seen, part) for seen in runs) for runs in (plain, secure))
        yield Figure(name=f"{name}, with TLS", value=value, unit="s", floor=floor, sizes=sizes)


def _make_certs(*arguments: object) -> None:
    command = [sys.executable, "-m", "scripts.make_certs", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _pair(place: Path) -> tuple[object, ...]:
    return ("--tls-cert", place / "cert.pem", "--tls-key", place / "key.pem")


def _run(case: Case, server_flags: tuple[object, ...], client_flags: tuple[object, ...]) -> Watched:
    with ExitStack() as stack:
        server = stack.enter_context(serving(*case.server_flags, *server_flags))
        clients = [
            stack.enter_context(client_of(server.address, held, *client_flags))
            for held in case.held
        ]
        return server.watch(clients)
