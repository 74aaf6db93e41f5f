"""Finds a task by its name: a built-in one, or `package.module:attribute`."""

import importlib
import sys

from common.errors import InputError
from common.tasks.base import Task

BUILT_IN = {
    "digits": "common.tasks.digits:Digits",
    "mnist": "common.tasks.mnist:Mnist",
    "fashion_mnist": "common.tasks.mnist:FashionMnist",
}


def load_task(name: str) -> Task:
    """Import and return a task.

    A module outside the installed packages is looked for in the current folder, as
    `python -m` does.

    Raises:
        InputError: there is no such task; the message says what was looked for.
    """
    module_name, _, attribute = BUILT_IN.get(name, name).partition(":")
    if not attribute:
        raise InputError(
            f"--task: no task {name!r}; use one of {', '.join(BUILT_IN)}, "
            "or your own as package.module:attribute"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise InputError(
            f"--task: {name!r}: no module {error.name!r} in {module_name!r}'s import; "
            "start from the folder that holds it, or set PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise InputError(f"--task: {name!r}: {error}") from error
    task = found() if isinstance(found, type) else found
    if not isinstance(task, Task):
        raise InputError(f"--task: {name!r} is not a common.tasks.Task")
    return task
