"""A copy of the tree, to show what a change touches."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copy_tree(folder, changes):
    """Copy the tree, and insert lines: by file, {the begin of the next line: the new lines}."""
    for room in ("server", "client", "common", "protos", "scripts", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.png", "data")
        shutil.copytree(ROOT / room, folder / room, ignore=ignored)
    for name, lines in changes.items():
        text = (folder / name).read_text()
        for begin, new in lines.items():
            assert text.count("\n" + begin) == 1
            text = text.replace("\n" + begin, "\n" + new + begin)
        (folder / name).write_text(text)
    return folder


def changed(folder):
    """Return the files of a copy that are not those of the tree."""
    files = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return [file for file in files if (folder / file).read_bytes() != (ROOT / file).read_bytes()]


def python(folder, *arguments, **variables):
    """Run Python in a copy; return its exit status, and what it printed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr
