"""Runs the lesson in a new kernel, and keeps what it shows in the notebook.

    .venv/bin/python -m scripts.teaching.execute

after each change of a cell. Needs the extra "full".
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

LESSON = Path(__file__).with_name("lesson.ipynb")
_ROOT = Path(__file__).parents[2]
_CELL_SECONDS = 300


def execute(notebook: nbformat.NotebookNode) -> None:
    """Run all cells; their outputs replace those that are there.

    Raises:
        CellExecutionError: a cell raised something.
    """
    metadata = notebook.metadata.copy()
    NotebookClient(
        notebook,
        timeout=_CELL_SECONDS,
        kernel_name=metadata.kernelspec.name,
        resources={"metadata": {"path": str(_ROOT)}},
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
    ).execute()
    # The kernel adds which Python ran it, which the page doesn't depend on.
    notebook.metadata = metadata


if __name__ == "__main__":
    lesson = nbformat.read(LESSON, as_version=4)
    execute(lesson)
    nbformat.write(lesson, LESSON)
