"""SCAFFOLD's server: control variates that take the clients' drift out of their local steps.

The client's half is `client/scaffold.py`.
"""

from collections.abc import Sequence

import torch

from server.aggregation.optimizers import Optimizer
from server.aggregation.strategies.base import Plan, State, Strategy
from server.aggregation.weighting import weighted_mean

CONTROL = "control"


class Scaffold(Strategy):
    """Karimireddy et al. 2020 (arXiv 1910.06378), algorithm 1 with option II.

    A client's new control variate is the mean gradient of its local steps. It differs from the old
    one by -c - update_k / (K_k * lr), where c is the server's variate and K_k the client's steps,
    so that the server knows the difference from the update alone: no second tensor is uploaded.

    The paper weighs all clients alike; as in FedAvg, they count here by their examples, and the
    server's variate moves by |S| / N of the cohort's weighted mean difference.

    Args:
        optimizer: takes the step.
        learning_rate: of the clients' SGD.
        num_clients: N, of the whole federation.
    """

    needs_steps = True

    def __init__(self, optimizer: Optimizer, learning_rate: float, num_clients: int) -> None:
        super().__init__(optimizer)
        self._learning_rate = learning_rate
        self._num_clients = num_clients

    @property
    def state_names(self) -> tuple[str, ...]:
        """See `Strategy.state_names`."""
        return (*self.optimizer.state_names, CONTROL)

    def apply(
        self, model: torch.Tensor, updates: Sequence[torch.Tensor], plan: Plan, state: State
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See `Strategy.apply`."""
        value, new_state = super().apply(model, updates, plan, state)
        steps = [one.num_steps * self._learning_rate for one in plan.cohort]
        per_step = [weight / step for weight, step in zip(plan.weights, steps, strict=True)]
        share = len(plan.cohort) / self._num_clients
        # The cohort's mean gradient, less what it is counted with already.
        moved = weighted_mean(updates, per_step, plan.total).mul_(-share)
        if CONTROL in state:
            moved.add_(state[CONTROL], alpha=1 - share)
        return value, {**new_state, CONTROL: moved}
