"""`./scripts/serve`: an exported model as a small HTTP service, where there is no torch."""

from __future__ import annotations

import signal
import socket
import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

from common.commands import command
from common.errors import InputError
from common.extras import require
from common.process import begin_process, exit_status
from scripts.serving.arguments import Arguments

# After which a stopping service no longer waits for the requests that it is answering.
_STOP_SECONDS = 10
# Connections; those beyond are answered by a 503.
_MOST_CONNECTIONS = 512


def _parse() -> Namespace:
    parser = Arguments(
        command("serve"),
        "Serves an exported model over HTTP: POST /predict, GET /model, GET /health; the page "
        "/docs says how.",
    )
    parser.add_argument("model", type=Path, help="an .onnx file, its metadata beside it")
    parser.add_argument(
        "--bind", default="127.0.0.1:7080", metavar="HOST:PORT", help="port 0 takes a free one"
    )
    parser.add_argument("--threads", type=_count, default=1, help="for a run of the model")
    parser.add_argument(
        "--max-batch", type=_count, default=32, help="inputs in a run of the model; 1: no batches"
    )
    parser.add_argument(
        "--batch-wait",
        type=_milliseconds,
        default=2.0,
        metavar="MS",
        help="milliseconds that an input waits for others to join its batch",
    )
    return parser.parse_args()


def _count(value: str) -> int:
    if not (value.isdecimal() and 1 <= int(value) <= 1024):
        raise ArgumentTypeError(f"{value!r} is not a whole number from 1 to 1024")
    return int(value)


def _milliseconds(value: str) -> float:
    try:
        if 0 <= float(value) <= 1000:
            return float(value)
    except ValueError:
        pass
    raise ArgumentTypeError(f"{value!r} is not a number from 0 to 1000")


def _listen(bind: str) -> socket.socket:
    host, _, port = bind.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 65536):
        raise InputError(f"--bind: {bind!r} is not HOST:PORT, e.g. 127.0.0.1:7080")
    host = host.removeprefix("[").removesuffix("]")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=_MOST_CONNECTIONS)
    except OSError as error:
        # create_server names the address once more.
        reason = str(error.strerror).partition(" (while")[0]
        message = f"--bind: can't listen on {bind} ({reason}); name another address"
        raise InputError(message) from error


def serve() -> int:
    """Serve until a signal comes; then answer what was asked, and return 0."""
    arguments = _parse()
    require("serve", command("serve"), "fastapi", "uvicorn", "python_multipart", "onnxruntime")
    import uvicorn

    from scripts.serving.batching import Batching
    from scripts.serving.loading import load_model
    from scripts.serving.service import create_app

    model, metadata = load_model(arguments.model, arguments.threads)
    batching = Batching(most=arguments.max_batch, wait=arguments.batch_wait / 1000)
    with _listen(arguments.bind) as listening:
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(model, metadata, batching),
                log_level="warning",
                access_log=False,
                server_header=False,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_graceful_shutdown=_STOP_SECONDS,
            )
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            # Also for uvicorn, which raises them again once it has stopped.
            signal.signal(number, server.handle_exit)
        host, port = listening.getsockname()[:2]
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"{metadata.task}, round {metadata.round}: {where} (page: {where}/docs)", flush=True)
        server.run(sockets=[listening])
    return 0


def main() -> int:
    """Return the exit status: 0 stopped by a signal, 2 wrong input."""
    begin_process()
    return exit_status(serve)


if __name__ == "__main__":
    sys.exit(main())
