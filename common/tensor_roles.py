"""What becomes of each tensor of a model: it travels or stays, it is trained or a statistic.

Computed once from a model and from what stays with the clients.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from common.errors import InputError, TensorError
from common.tensors import Schema, check_schema, open_mapped, specs

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from common.tasks import Task


@dataclass(frozen=True)
class TensorRoles:
    """The tensors of a model's state dict, by role.

    Attributes:
        schema: all of them.
        stays: the names of those that stay with each client (--local-layers); the others travel.
        trained: the names of the floating-point parameters, which a server optimizer changes.
            The others are statistics, such as the running variance of batch normalisation.
        trainable: the names of the parameters that local steps change; the others are frozen.
    """

    schema: Schema
    stays: frozenset[str]
    trained: frozenset[str]
    trainable: frozenset[str]

    @classmethod
    def of(cls, model: torch.nn.Module, stays: Iterable[str] = ()) -> Self:
        """Return the roles of a model's tensors; `stays` may have names that are none of them."""
        schema = specs(model.state_dict())
        parameters = dict(model.named_parameters(remove_duplicate=False))
        return cls(
            schema,
            frozenset(stays) & schema.keys(),
            # Integers have no gradient, even where they are parameters.
            frozenset(name for name, value in parameters.items() if value.is_floating_point()),
            frozenset(name for name, value in parameters.items() if value.requires_grad),
        )

    @property
    def travels(self) -> Schema:
        """The tensors that models and updates hold, on the wire and in files."""
        return {name: spec for name, spec in self.schema.items() if name not in self.stays}

    def travelling(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return those of the model's tensors that travel."""
        return {name: value for name, value in tensors.items() if name not in self.stays}

    def check(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Check that tensors are those that travel.

        Raises:
            TensorError: one is missing, unknown, of another dtype or shape, or stays.
        """
        unexpected = sorted(self.stays & tensors.keys())
        if unexpected:
            raise TensorError(f"tensor {unexpected[0]!r} stays with the clients (--local-layers)")
        check_schema(specs(tensors), self.travels)


def load_model(
    model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], roles: TensorRoles
) -> None:
    """Give a model the tensors that travel, such as those of a run's model file.

    Those that stay keep their values.

    Raises:
        TensorError: these are not the tensors that travel.
    """
    roles.check(tensors)
    model.load_state_dict(dict(tensors), strict=not roles.stays)


def model_of_run(task: Task, options: Mapping[str, Any], path: Path) -> torch.nn.Module:
    """Return a run's model from its file.

    Args:
        task: the run's.
        options: those of the run's config.json, by name.
        path: a safetensors file.

    Raises:
        KeyError: the task has no such model.
        TensorError: the file is damaged, or does not hold all tensors of the model: some stay with
            the clients, say.
    """
    model = task.build(options["model"], json.loads(options.get("hyperparameters", "{}")))
    load_model(model, open_mapped(path), TensorRoles.of(model))
    return model


def matching(names: Iterable[str], pattern: str) -> frozenset[str]:
    """Return the names that --local-layers matches, anywhere in them; "" matches none.

    Raises:
        InputError: it is no regular expression.

    >>> sorted(matching(["conv.weight", "bn.weight", "bn.bias"], "^bn"))
    ['bn.bias', 'bn.weight']
    """
    try:
        expression = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(
            f"--local-layers: {pattern!r} is no regular expression ({error}); e.g. 'bn|norm'"
        ) from error
    return frozenset(name for name in names if pattern and expression.search(name))
