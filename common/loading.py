"""Finds code by its name: a built-in one, or `package.module:attribute` of the user's own."""

import importlib
import sys
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import InputError

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("protos", "server", "client", "common", "scripts")

# Where Python's library and installed packages are, and what is in no file.
_INSTALLED = (
    *(sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    "<",
)


def load(flag: str, name: str, built_in: Mapping[str, str]) -> Any:  # noqa: ANN401
    """Import and return what a flag names; a class is not called.

    A module outside the installed packages is looked for in the current folder, as
    `python -m` does, but after the packages of this project.

    Args:
        flag: e.g. "--task".
        name: its value.
        built_in: "package.module:attribute" by short name.

    Raises:
        InputError: there is no such thing; the message says what was looked for.
    """
    module_name, _, attribute = built_in.get(name, name).partition(":")
    if not (module_name and attribute) or module_name.startswith("."):
        raise InputError(
            f"{flag}: no {flag.removeprefix('--')} {name!r}; use one of {', '.join(built_in)}, "
            "or your own as package.module:attribute"
        )
    if "" not in sys.path:
        sys.path[:0] = [str(_ROOT), ""]
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        raise InputError(f"{flag}: {name!r}: {_reason(error, module_name)}") from error


def _reason(error: Exception, module: str) -> str:
    """Return why a module can't be had, and what to do where that is known."""
    missing = error.name if isinstance(error, ImportError) else module
    package = (missing or "").partition(".")[0]
    own = next((path for path in (Path(package), Path(f"{package}.py")) if path.exists()), None)
    if package in _PACKAGES and own is not None and Path.cwd() != _ROOT.resolve():
        return f"{package} is a package of Folkmoot's: give {own} in this folder another name"
    if isinstance(error, ModuleNotFoundError):
        return f"no module {missing!r}; start from the folder that holds it, or set PYTHONPATH"
    return describe(error)


def describe(error: Exception) -> str:
    """Return one line about an error that the user's own code raised: what, and where.

    That is the last line that ran outside of Python's library and of installed packages.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)]
    frame = (own or frames)[-1]
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message} ({frame.filename}, line {frame.lineno})"
