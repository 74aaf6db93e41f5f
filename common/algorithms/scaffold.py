"""SCAFFOLD: control variates take the clients' drift out of their local steps.

Karimireddy et al. 2020 (arXiv 1910.06378), algorithm 1 with option II.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.algorithms.base import Algorithm, ClientHalf, ClientRound, OnGradient, Plan
from common.algorithms.optimizers import Applied, Tensor, Tensors
from common.algorithms.weighting import weighted_mean
from common.errors import InputError

_CONTROL = "control"


class ScaffoldClient(ClientHalf):
    """Adds c - c_i to each gradient; keeps c_i, the mean gradient of its local steps.

    c_i = c_i - c - update / (steps * learning_rate), float32, of the model's shapes.
    """

    keeps = _CONTROL
    payloads = (_CONTROL,)

    def __init__(self, given: ClientRound) -> None:
        super().__init__(given)
        control = given.payloads.get(_CONTROL, {})
        # Who lost its own counts, like the server, on being like the others: no correction.
        own = control if given.kept is None else given.kept
        self._corrected_by = correction(control, own)

    def on_gradient(self, name: str, parameter: Tensor) -> OnGradient | None:
        if name not in self._corrected_by:
            return None
        values = self._corrected_by[name].to(parameter)
        return lambda gradient: gradient + values

    def after(self, update: Tensors, num_steps: int) -> Mapping[str, float]:
        trained = {name: update[name] for name in update if name in self.given.trained}
        rate = self.given.training.learning_rate
        self.kept = next_control(self._corrected_by, trained, num_steps, rate)
        return {}


def correction(control: Tensors, own: Tensors) -> dict[str, Tensor]:
    """Return c - c_i, which is added to each local gradient.

    Args:
        control: c, the server's; empty is all zeros.
        own: c_i, the client's; empty is all zeros.

    >>> import torch
    >>> correction({"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])})
    {'w': tensor([2.])}
    """
    import torch

    names = dict.fromkeys([*control, *own])
    return {
        name: control.get(name, torch.zeros(())) - own.get(name, torch.zeros(())) for name in names
    }


def next_control(
    corrected_by: Tensors, update: Tensors, steps: int, learning_rate: float
) -> dict[str, Tensor]:
    """Return the client's next c_i: c_i - c - update / (steps * learning_rate).

    That is the mean gradient of the local steps, before their correction.

    Args:
        corrected_by: what `correction` returned; empty is all zeros.
        update: local minus global, by name; floating-point tensors count.
        steps: the local steps taken, at least 1.
        learning_rate: of the local steps.

    >>> import torch
    >>> next_control({"w": torch.tensor([2.0])}, {"w": torch.tensor([-1.0])}, 2, 0.1)
    {'w': tensor([3.])}
    """
    import torch

    scale = -1 / (steps * learning_rate)
    return {
        name: tensor.float() * scale - corrected_by.get(name, torch.zeros(()))
        for name, tensor in update.items()
        if tensor.is_floating_point()
    }


class Scaffold(Algorithm):
    """The server's control variate c, which is the mean of the clients'.

    A client's new control variate differs from the old one by -c - update_k / (K_k * lr), where K_k
    is the client's steps, so that the server knows the difference from the update alone: no second
    tensor is uploaded.

    The paper weighs all clients alike; as in FedAvg, they count here by their examples, and the
    server's variate moves by |S| / N of the cohort's weighted mean difference.
    """

    client = ScaffoldClient
    needs_steps = True

    def check(self) -> None:
        super().check()
        momentum = self.setting.training.momentum
        if momentum:
            raise InputError(
                f"--momentum: {momentum} does not go with --strategy {self.setting.name}, whose "
                "control variates are the gradients of plain SGD; use --momentum 0"
            )

    @property
    def state_names(self) -> tuple[str, ...]:
        return (*self.options.state_names, _CONTROL)

    def apply(
        self, model: Tensor, updates: Sequence[Tensor], plan: Plan, state: Tensors
    ) -> Applied:
        value, new_state = super().apply(model, updates, plan, state)
        rate = self.setting.training.learning_rate
        steps = [one.num_steps * rate for one in plan.cohort]
        per_step = [weight / step for weight, step in zip(plan.weights, steps, strict=True)]
        share = len(plan.cohort) / self.setting.num_clients
        # The cohort's mean gradient, less what it is counted with already.
        moved = weighted_mean(updates, per_step, plan.total).mul_(-share)
        if _CONTROL in state:
            moved.add_(state[_CONTROL], alpha=1 - share)
        return value, {**new_state, _CONTROL: moved}
