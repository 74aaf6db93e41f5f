"""`python -m server.tracking RUN_DIR`: reports a run to MLflow, while it goes on or afterwards."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cyclopts import App, CycloptsError

from common.durable import write_json
from common.errors import InputError
from common.logs import configure_logs
from common.process import begin_process, exit_status
from common.urls import credentials, without_credentials
from server.mlflow_reporting.launcher import Target, target_of
from server.options import TrackingOptions
from server.storage import layout
from server.storage.run_files import RunFiles, read_json

# One try in a call, and not for long: it is tried again anyhow. Nothing is told to anyone else.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
}


def main(argv: Sequence[str]) -> int:
    """Return the exit status: 0 MLflow has all of the run, 1 it has not, 2 wrong input."""
    app = App(
        name="python -m server.tracking",
        help="Reports a run to MLflow, until it ends; what is there already is not told again.",
        version_flags=(),
        help_format="plaintext",
        result_action="return_value",
    )

    @app.default
    def track(
        run_dir: Path,
        /,
        *,
        options: TrackingOptions = TrackingOptions(),  # noqa: B008
        task: str | None = None,
    ) -> int:
        """Report a run to MLflow, until it ends; what is there already is not told again.

        Args:
            run_dir: The run directory.
            options: Of MLflow.
            task: The run's task if it is your own: its code is run here, to export the model.
        """
        target = target_of(options)
        if target is None:
            raise InputError("--mlflow-uri: say which MLflow server, e.g. http://127.0.0.1:7027")
        return _track(RunFiles(run_dir), target, task)

    def run() -> int:
        try:
            return int(app(list(argv), exit_on_error=False, print_error=False) or 0)
        except CycloptsError as error:
            raise InputError(" ".join(str(error).split())) from error

    return exit_status(run)


def _track(files: RunFiles, target: Target, task: str | None) -> int:
    os.environ.update(_ENVIRONMENT)
    uri = _prepare_uri(target.uri)
    configure_logs(files.path / layout.LOG)
    with _alone(files.path), tempfile.TemporaryDirectory() as folder:
        import mlflow

        from server.mlflow_reporting.best_model import BestModel
        from server.mlflow_reporting.follower import Follower
        from server.mlflow_reporting.history import History
        from server.mlflow_reporting.runs import Runs

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        mlflow.set_tracking_uri(uri)
        tracking_id, revision, history = _tracking_id(files.path), _revision(), History(files)

        def connect() -> Runs:
            client = mlflow.MlflowClient(uri)
            return Runs(client, target.experiment, tracking_id, history, revision)

        best = BestModel(files, Path(folder), task)
        return 0 if Follower(history, connect, best, target.model).follow() else 1


def _prepare_uri(uri: str) -> str:
    """Return the URI as messages may show it; a name and password in it go to MLflow apart."""
    found = credentials(uri)
    if found is None or not uri.startswith("http"):
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = found
    return without_credentials(uri)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process reports the run: that of a killed server may do so still."""
    try:
        with (folder / layout.TRACKING_LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise InputError(f"{folder} can't be written: {error.strerror}") from error


def _tracking_id(folder: Path) -> str:
    """Return what MLflow knows the run by, wherever its directory moves; made the first time."""
    path = folder / layout.TRACKING
    known = read_json(path).get("id")
    if known is None:
        known = uuid.uuid4().hex
        write_json(path, {"id": known})
    return str(known)


def _revision() -> str | None:
    """Return the git revision of this code; None where it is no checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return None
    return found.stdout.strip() or None


if __name__ == "__main__":
    begin_process()
    sys.exit(main(sys.argv[1:]))
