"""Extras: packages that only some features need, and what to install where they are missing."""

from importlib.util import find_spec

from common.errors import InputError


def require(extra: str, feature: str, *modules: str) -> None:
    """Check that the modules of an extra of pyproject.toml are installed, importing none of them.

    Args:
        extra: its name, e.g. "onnx".
        feature: who asks, as the beginning of the error, e.g. "--format onnx".
        modules: top-level names, e.g. "onnx", "onnxruntime".

    Raises:
        InputError: one is missing.
    """
    if any(find_spec(module) is None for module in modules):
        raise InputError(
            f'{feature} needs the extra "{extra}": '
            f".venv/bin/pip install -c constraints.txt -e '.[{extra}]'"
        )
