"""What a strategy is: a plan for the cohort, then the same arithmetic on each window.

A window is a part of the coordinates, so that memory does not grow with the model.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from common.errors import FolkmootError
from server.aggregation.optimizers import Optimizer
from server.aggregation.weighting import weighted_mean

State = Mapping[str, torch.Tensor]


class CannotAggregate(FolkmootError):
    """The updates, each valid by itself, make no new model."""


class Contribution(NamedTuple):
    """An update, beside its values: its weight (n_k, perhaps capped) and its local steps."""

    weight: float
    num_steps: int


class Plan(NamedTuple):
    """How much each update of a cohort counts: the step is sum(weight * update) / total.

    No weights: the step is no such sum.
    """

    cohort: Sequence[Contribution]
    weights: Sequence[float] = ()
    total: float = 1.0

    @property
    def shares(self) -> list[float | None]:
        """Each update's part of the step; None where no such part can be told."""
        if not self.weights:
            return [None] * len(self.cohort)
        return [weight / self.total for weight in self.weights]


class Strategy:
    """Combines updates into a step, which the server optimizer takes; here by n_k, as FedAvg.

    Subclasses replace `plan`, `combine`, or what is kept from round to round.
    """

    # Whether `plan` needs what `measure` finds, which takes one more pass over the updates.
    measures = False
    # Whether an update counts only with the number of its local steps.
    needs_steps = False

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def state_names(self) -> tuple[str, ...]:
        """What is kept from round to round: tensors of the model's schema, by name."""
        return self.optimizer.state_names

    def measure(self, updates: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return what `plan` needs to know of a window of floating-point values.

        Args:
            updates: of shape [window] each.

        Returns:
            float64, of any one shape; the windows' are added up in order.
        """
        raise NotImplementedError

    def plan(self, cohort: Sequence[Contribution], measured: torch.Tensor | None) -> Plan:
        """Return how much each update counts.

        Args:
            cohort: at least one, in client_id order.
            measured: the sum of what `measure` returned; None if the strategy measures nothing.

        Raises:
            CannotAggregate: these updates are too few, or not what the strategy needs.
        """
        weights = [one.weight for one in cohort]
        return Plan(cohort, weights, sum(weights))

    def combine(self, updates: Sequence[torch.Tensor], plan: Plan) -> torch.Tensor:
        """Return the step of a window.

        Args:
            updates: of shape [window] each, of any one dtype, in the plan's order.
            plan: the cohort's.

        Returns:
            float64, shape [window].
        """
        return weighted_mean(updates, plan.weights, plan.total)

    def mean(self, updates: Sequence[torch.Tensor], plan: Plan) -> torch.Tensor:
        """Return by how much what isn't trained changes, such as BatchNorm's running variance.

        No server optimizer has a part in it. Arguments and result are those of `combine`.
        """
        return self.combine(updates, plan)

    def apply(
        self, model: torch.Tensor, updates: Sequence[torch.Tensor], plan: Plan, state: State
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return a window of the new model and of the new state, all float64.

        Args:
            model: floating-point values, shape [window].
            updates: of shape [window] each, in the plan's order.
            plan: the cohort's.
            state: float64 windows by name, as the round before left them; empty in the first.
        """
        return self.optimizer.apply(model, self.combine(updates, plan), state)
