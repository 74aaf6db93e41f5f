"""Opens the lesson in JupyterLab, with its flags."""

import os
import sys
from pathlib import Path

from common.commands import command
from common.extras import require
from common.process import exit_status


def main() -> int:
    """Become JupyterLab.

    Raises:
        InputError: it is not installed.
    """
    require("lesson", command("lesson"), "jupyterlab")
    lesson = Path(__file__).with_name("lesson.ipynb")
    # In a container one often is root, which Jupyter wants to be told.
    root = ["--allow-root"] if os.getuid() == 0 else []
    given = ["--LabApp.default_url=/lab/tree/lesson.ipynb", str(lesson), *root, *sys.argv[1:]]
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *given])  # noqa: S606


if __name__ == "__main__":
    sys.exit(exit_status(main))
