"""The process that reports a run to MLflow: begun with the run, waited for at its end.

Imports no MLflow, and tells the process nothing but where: whatever happens to it, the run goes on.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from common.errors import InputError
from common.extras import require
from common.logs import get_logger
from common.tasks import BUILT_IN
from common.urls import credentials, without_credentials
from server.options import TrackingOptions

log = get_logger()

# How long the run's end waits at most, for what goes on. A server that does not answer for half a
# minute is given up before that.
END_SECONDS = 600.0
# After a signal.
INTERRUPTED_SECONDS = 3.0
_TERMINATE_SECONDS = 2.0


class Target(NamedTuple):
    """Where a run is reported to."""

    uri: str
    experiment: str
    # What the best model is registered under.
    model: str | None


def target_of(options: TrackingOptions) -> Target | None:
    """Return where to report to, by the options or MLflow's own variables; None: nowhere.

    Raises:
        InputError: MLflow is not installed, or can't be meant.
    """
    said = "--mlflow-uri" if options.mlflow_uri else "MLFLOW_TRACKING_URI"
    uri = options.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        for flag, value in (
            ("--mlflow-experiment", options.mlflow_experiment),
            ("--mlflow-model", options.mlflow_model),
        ):
            if value:
                raise InputError(f"{flag}: no MLflow server is named; add --mlflow-uri")
        return None
    try:
        known = "://" in uri or uri == "databricks"
        urlsplit(uri)
    except ValueError:
        known = False
    if not known:
        raise InputError(f"{said}: that is no URI; say it like http://127.0.0.1:7027")
    name = options.mlflow_model
    if name is not None and (not name.strip() or re.search(r"[/:'%]", name)):
        raise InputError(f"--mlflow-model: {name!r} can't be a model's name; leave / : ' % out")
    require("mlflow", said, "mlflow", "onnx", "onnxruntime", "psutil")
    experiment = options.mlflow_experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    return Target(uri, experiment or "folkmoot", name)


class Tracker:
    """Reports a run, or does nothing without a target.

    Args:
        folder: the run directory.
        target: where to.
        task: of the run, whose code the process then runs, as this one does.
    """

    def __init__(self, folder: Path, target: Target | None, task: str) -> None:
        self._folder = folder
        self._target = target
        self._task = task
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Begin; the run must be under way."""
        if self._target is None:
            return
        # Not as an argument, which any user of this machine could read.
        environment = os.environ | {"MLFLOW_TRACKING_URI": self._target.uri}
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, *["-P"] * sys.flags.safe_path, "-m", "server.tracking"),
            *(str(self._folder), *self._flags()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            env=environment,
            # Ctrl-C is the server's, which gives it time.
            start_new_session=True,
        )

    def _flags(self) -> list[str]:
        if self._target is None:
            return []
        flags = ["--mlflow-experiment", self._target.experiment]
        flags += [] if self._task in BUILT_IN else ["--task", self._task]
        return flags + (["--mlflow-model", self._target.model] if self._target.model else [])

    async def finish(self, seconds: float) -> None:
        """Wait until all is reported, but not longer than that; say how to do what is left."""
        process, self._process = self._process, None
        if process is None or self._target is None:
            return
        try:
            status: int | None = await asyncio.wait_for(process.wait(), seconds)
        except TimeoutError:
            status = None
        finally:
            await _end(process)
        if status != 0:
            uri = without_credentials(self._target.uri)
            if credentials(self._target.uri):
                uri = uri.replace("://", "://USER:PASSWORD@", 1)
            command = ["python", "-m", "server.tracking", str(self._folder), "--mlflow-uri", uri]
            log.warning(
                "the run is not completely reported to MLflow",
                fill_in=shlex.join([*command, *self._flags()]),
            )


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _TERMINATE_SECONDS)
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
