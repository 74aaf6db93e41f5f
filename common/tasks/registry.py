"""Finds a task by its name: a built-in one, or `package.module:attribute`."""

import importlib
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import DataError, FolkmootError, InputError, UnnamedTask
from common.tasks.base import Examples, Task
from common.tasks.outputs import Labels, check_labels

BUILT_IN = {
    "digits": "common.tasks.digits:Digits",
    "mnist": "common.tasks.mnist:Mnist",
    "fashion_mnist": "common.tasks.mnist:FashionMnist",
    "shakespeare": "common.tasks.shakespeare:Shakespeare",
    "next_word": "common.tasks.next_word:NextWord",
}
_ROOT = Path(__file__).parents[2]
_PACKAGES = ("protos", "server", "client", "common", "scripts")

# Where Python's library and installed packages are, and what is in no file.
_INSTALLED = (
    *(sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    "<",
)


def load_task(name: str) -> Task:
    """Import and return a task.

    A module outside the installed packages is looked for in the current folder, as
    `python -m` does, but after the packages of this project.

    Raises:
        InputError: there is no such task; the message says what was looked for.
    """
    module_name, _, attribute = BUILT_IN.get(name, name).partition(":")
    if not (module_name and attribute) or module_name.startswith("."):
        raise InputError(
            f"--task: no task {name!r}; use one of {', '.join(BUILT_IN)}, "
            "or your own as package.module:attribute"
        )
    if "" not in sys.path:
        sys.path[:0] = [str(_ROOT), ""]
    try:
        found = getattr(importlib.import_module(module_name), attribute)
        task = found() if isinstance(found, type) else found
    except Exception as error:
        raise InputError(f"--task: {name!r}: {_reason(error, module_name)}") from error
    if not isinstance(task, Task):
        raise InputError(f"--task: {name!r} is not a common.tasks.Task")
    return task


def _reason(error: Exception, module: str) -> str:
    """Return why a module's task can't be had, and what to do where that is known."""
    missing = error.name if isinstance(error, ImportError) else module
    package = (missing or "").partition(".")[0]
    own = next((path for path in (Path(package), Path(f"{package}.py")) if path.exists()), None)
    if package in _PACKAGES and own is not None and Path.cwd() != _ROOT.resolve():
        return f"{package} is a package of Folkmoot's: give {own} in this folder another name"
    if isinstance(error, ModuleNotFoundError):
        return f"no module {missing!r}; start from the folder that holds it, or set PYTHONPATH"
    return describe(error)


def load_task_of_run(name: str, named: str | None) -> Task:
    """Return the task that a run directory names, if it is built in or its user named it, too.

    A run directory may name any module, and bring one along, whose code would run.

    Raises:
        UnnamedTask: it is neither.
        InputError: there is no such task.
    """
    if name not in BUILT_IN and name != named:
        raise UnnamedTask(name)
    return load_task(name)


def naming(name: str) -> str:
    """Return what a command that goes on with a run says of its task, after a space.

    >>> naming("digits"), naming("mine:Task")
    ('', ' --task mine:Task')
    """
    return "" if name in BUILT_IN else f" --task {name}"


def load_examples(task: Task, data_dir: Path, *, train: bool) -> Examples:
    """Return a task's training examples, or those that the server evaluates on: at least one.

    Raises:
        DataError: they are missing or can't be read, or the task's code fails.
    """
    import torch

    with failing_data(task):
        examples = Examples(*task.data(data_dir, train=train))
        if not isinstance(examples.targets, torch.Tensor):
            raise DataError(
                f"--task: data() returned targets of type {type(examples.targets).__name__}; "
                "return torch tensors, e.g. torch.from_numpy(...)"
            )
        inputs, targets = len(examples.inputs), len(examples.targets)
    if inputs != targets or not inputs:
        raise DataError(
            f"--data-dir: the task gave {inputs} inputs and {targets} targets; there must be as "
            "many of both, and some"
        )
    if isinstance(task.outputs, Labels) and type(task).loss is Task.loss:
        check_labels(examples.targets)
    return examples


@contextmanager
def failing_data(task: Task) -> Iterator[None]:
    """Turn whatever a task's code raises, where its data is read, into a DataError."""
    try:
        yield
    except FolkmootError:
        raise
    except Exception as error:
        name = f"{type(task).__module__}:{type(task).__name__}"
        raise DataError(f"--task: the data of {name} can't be read: {describe(error)}") from error


def describe(error: Exception) -> str:
    """Return one line about an error that a task's code raised: what, and where.

    That is the last line that ran outside of Python's library and of installed packages.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)]
    frame = (own or frames)[-1]
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message} ({frame.filename}, line {frame.lineno})"
