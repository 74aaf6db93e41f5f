"""The learning problems: what a task is, the built-in ones, and finding one by name."""

from common.tasks.base import Examples, Task
from common.tasks.outputs import Classes, Labels, Map, Outputs, Values
from common.tasks.registry import (
    BUILT_IN,
    failing_data,
    load_examples,
    load_task,
    load_task_of_run,
    naming,
)

__all__ = [
    "BUILT_IN",
    "Classes",
    "Examples",
    "Labels",
    "Map",
    "Outputs",
    "Task",
    "Values",
    "failing_data",
    "load_examples",
    "load_task",
    "load_task_of_run",
    "naming",
]
