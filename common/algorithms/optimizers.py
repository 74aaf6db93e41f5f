"""Server optimizers: how a step changes the global model, on one window of coordinates.

Pure: tensors in, tensors out. Knows nothing about files or where the step came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

_MOMENTUM = "momentum"
_SECOND_MOMENT = "second_moment"


class Optimizer(Protocol):
    """Takes steps, and remembers tensors of the model's schema from one to the next."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """What is remembered."""

    def apply(
        self, model: torch.Tensor, step: torch.Tensor, state: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the new model and the new state, all float64 of shape [window].

        Args:
            model: shape [window], of any floating-point dtype.
            step: float64, shape [window].
            state: float64 of shape [window], by name; empty at first.
        """


@dataclass(frozen=True)
class Sgd:
    """SGD on the step; rate 1 without momentum is FedAvg, with it FedAvgM.

    Hsu, Qi and Brown 2019 (arXiv 1909.06335), section 4: v = beta * v + step, w = w + rate * v.
    """

    learning_rate: float = 1.0
    momentum: float = 0.0

    @property
    def state_names(self) -> tuple[str, ...]:
        """See `Optimizer`."""
        return (_MOMENTUM,) if self.momentum else ()

    def apply(
        self, model: torch.Tensor, step: torch.Tensor, state: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See `Optimizer.apply`."""
        import torch

        if self.momentum and _MOMENTUM in state:
            step = state[_MOMENTUM] * self.momentum + step
        new = model.to(torch.float64, copy=True).add_(step, alpha=self.learning_rate)
        return new, {_MOMENTUM: step} if self.momentum else {}


class SecondMoment(Enum):
    """How the squares of the steps are remembered."""

    ADAGRAD = "fedadagrad"
    ADAM = "fedadam"
    YOGI = "fedyogi"


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """FedAdagrad, FedAdam and FedYogi: Reddi et al. 2021 (arXiv 2003.00295), algorithm 2.

    m = beta1 * m + (1 - beta1) * step, v by the kind's rule, w = w + rate * m / (sqrt(v) + tau).
    At first m is 0 and v is tau squared. There is no bias correction.
    """

    kind: SecondMoment
    learning_rate: float
    beta1: float
    beta2: float
    tau: float

    @property
    def state_names(self) -> tuple[str, ...]:
        """See `Optimizer`."""
        return (_MOMENTUM, _SECOND_MOMENT) if self.beta1 else (_SECOND_MOMENT,)

    def apply(
        self, model: torch.Tensor, step: torch.Tensor, state: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See `Optimizer.apply`."""
        import torch

        m = state.get(_MOMENTUM, torch.zeros_like(step))
        m = m * self.beta1 + step * (1 - self.beta1)
        v = state.get(_SECOND_MOMENT, torch.full_like(step, self.tau**2))
        square = step.square()
        match self.kind:
            case SecondMoment.ADAGRAD:
                v = v + square
            case SecondMoment.ADAM:
                v = v * self.beta2 + square * (1 - self.beta2)
            case SecondMoment.YOGI:
                v = v - square * torch.sign(v - square) * (1 - self.beta2)
        new = model.double() + m / (v.sqrt() + self.tau) * self.learning_rate
        return new, {_MOMENTUM: m, _SECOND_MOMENT: v} if self.beta1 else {_SECOND_MOMENT: v}
