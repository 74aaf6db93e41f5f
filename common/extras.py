"""Extras: packages that only some features need, and what to install where they are missing."""

from importlib.util import find_spec

from common.commands import install
from common.errors import InputError


def require(extra: str, feature: str, *modules: str) -> None:
    """Check that the modules of an extra of pyproject.toml are installed.

    Args:
        extra: its name, e.g. "onnx".
        feature: who asks, as the beginning of the error, e.g. "--format onnx".
        modules: their names, e.g. "onnx", "onnxruntime"; of a.b.c, a and a.b are imported.

    Raises:
        InputError: one is missing.
    """
    if not all(_is_there(module) for module in modules):
        raise InputError(f'{feature} needs the extra "{extra}": {install(extra)}')


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # Of a.b.c, a or a.b.
        return False
