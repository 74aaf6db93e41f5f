"""The command line of ./scripts/dashboard: a Streamlit server on this machine, for a folder."""

import socket
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from common.commands import command
from common.errors import InputError
from common.extras import require
from scripts.cli import command_line, run_app
from server.storage import layout

_ADDRESS = "127.0.0.1"
# It need not exist: the first run makes it.
_RUNS = Path("runs")

app = command_line("dashboard")


@app.default
def dashboard(
    runs_folder: Path = _RUNS,
    /,
    *,
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8501,
    task: str | None = None,
) -> None:
    """Show the runs of a folder in a browser of this machine.

    Args:
        runs_folder: The folder that holds the run directories.
        port: Port on 127.0.0.1; 0 takes a free one.
        task: A task of your own, whose code may be run here for what its runs have learned.
    """
    require("dashboard", command("dashboard"), "streamlit", "plotly")
    if runs_folder != _RUNS and not runs_folder.is_dir():
        raise InputError(f"there is no folder {runs_folder}; name the one that holds the runs")
    if (runs_folder / layout.CONFIG).exists():
        raise InputError(
            f"{runs_folder} is a run directory; name the folder that holds it: "
            f"{command('dashboard')} {runs_folder.absolute().parent}"
        )
    _check_free(port)
    import streamlit as st

    # What the first page would wait for.
    from scripts.viewing import pages

    # What Streamlit hands to its script.
    sys.argv[1:] = [str(runs_folder.absolute()), *([task] if task else [])]
    file = Path(__file__).absolute().with_name("script.py")
    st.App(file, on_script_error=pages.apologise).run(
        config={
            "server.address": _ADDRESS,
            "server.port": port,
            # No other site's script reaches it by a name of its own.
            "server.allowedHosts": [_ADDRESS, "localhost"],
            "server.headless": True,
            "server.fileWatcherType": "none",
            "server.maxUploadSize": 20,
            "browser.gatherUsageStats": False,
            "client.toolbarMode": "minimal",
            "client.showErrorDetails": "none",
            # Seven of them are one row on a laptop.
            "theme.metricValueFontSize": "1.5rem",
            "theme.light.primaryColor": "#4c8bf5",
            "theme.dark.primaryColor": "#4c8bf5",
        }
    )


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_ADDRESS, port))
        except OSError as error:
            raise InputError(
                f"--port: {port} can't be used: {error.strerror}; try --port {port + 1}"
            ) from error


if __name__ == "__main__":
    sys.exit(run_app(app))
