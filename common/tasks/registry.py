"""Finds a task by its name: a built-in one, or `package.module:attribute`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import DataError, FolkmootError, InputError, UnnamedTask
from common.loading import describe, load
from common.tasks.base import Examples, Task
from common.tasks.outputs import Labels, check_labels

BUILT_IN = {
    "digits": "common.tasks.digits:Digits",
    "mnist": "common.tasks.mnist:Mnist",
    "fashion_mnist": "common.tasks.mnist:FashionMnist",
    "shakespeare": "common.tasks.shakespeare:Shakespeare",
    "next_word": "common.tasks.next_word:NextWord",
}


def load_task(name: str) -> Task:
    """Import and return a task.

    Raises:
        InputError: there is no such task; the message says what was looked for.
    """
    found = load("--task", name, BUILT_IN)
    try:
        task = found() if isinstance(found, type) else found
    except Exception as error:
        raise InputError(f"--task: {name!r}: {describe(error)}") from error
    if not isinstance(task, Task):
        raise InputError(f"--task: {name!r} is not a common.tasks.Task")
    return task


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
