"""An MLflow server on this machine, with an SQLite store: what --mlflow-uri is for a start.

Ends all its processes, on every way out. Knows nothing about runs.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated
from urllib.error import URLError
from urllib.request import urlopen

from cyclopts import Parameter
from cyclopts.validators import Number

from common.commands import command
from common.errors import InputError, RunFailed
from common.extras import require
from scripts.cli import command_line, run_app
from scripts.federation import end_on_signals

_END_SECONDS = 5.0
# No tales to the internet, and no workers for jobs that nobody gives it: 0.2 GB each.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}

app = command_line("tracking")


@app.default
def tracking(
    *,
    folder: Path = Path("runs/mlflow"),
    port: Annotated[int, Parameter(validator=Number(gte=1, lte=65535))] = 7027,
) -> None:
    """Start an MLflow server on this machine, until Ctrl-C.

    Args:
        folder: Where it keeps what it is told: mlflow.db, artifacts and its log.
        port: Where it listens, on 127.0.0.1.
    """
    require("mlflow", command("tracking"), "mlflow")
    end_on_signals()
    url = f"http://127.0.0.1:{port}"
    if _answers(url):
        raise InputError(f"--port: something answers on {url} already; use it, or another port")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = (folder / "server.log").open("ab")
    except OSError as error:
        raise InputError(f"--folder: can't write {folder}: {error.strerror}") from error
    print("Starting MLflow; the first time it takes a while ...", flush=True)
    with log:
        server = subprocess.Popen(
            _command(folder.resolve(), port),
            stdout=log,
            stderr=log,
            env=os.environ | _ENVIRONMENT,
            start_new_session=True,
        )
    try:
        _wait_for(server, url, folder / "server.log")
        print(f"MLflow on {url}, kept in {folder}; Ctrl-C ends it.")
        print(f"Report a training to it:  {command('quickstart')} --mlflow-uri {url}", flush=True)
        server.wait()
        raise RunFailed(f"MLflow ended; {folder / 'server.log'} tells why")
    except KeyboardInterrupt:
        print("\nEnding MLflow ...", file=sys.stderr)
    finally:
        _end(server)


def _command(folder: Path, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(folder / "artifacts")),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]


def _answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=5):  # noqa: S310 - of this machine
            return True
    except URLError as error:
        return not isinstance(error.reason, ConnectionRefusedError)
    except OSError:
        return True


def _wait_for(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    while not _answers(url):
        if server.poll() is not None:
            raise RunFailed(f"MLflow did not start; {log} tells why")
        time.sleep(0.1)


def _end(server: "subprocess.Popen[bytes]") -> None:
    """End the server's process group; a second Ctrl-C must not leave one of its workers behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        server.wait(_END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


if __name__ == "__main__":
    sys.exit(run_app(app))
