"""Server optimizers: how a step changes the global model, on one window of coordinates.

Each is the options that it goes by. Pure: knows nothing about files or where the step came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeAlias

from cyclopts import Parameter

from common.option_types import BelowOne, PositiveFloat

if TYPE_CHECKING:
    import torch

Tensor: TypeAlias = "torch.Tensor"
Tensors: TypeAlias = Mapping[str, "torch.Tensor"]
# Of a window: the model, and what is kept from round to round.
Applied: TypeAlias = "tuple[torch.Tensor, dict[str, torch.Tensor]]"

_MOMENTUM = "momentum"
_SECOND_MOMENT = "second_moment"


@dataclass(frozen=True, kw_only=True)
class Options:
    """SGD on the step; rate 1 is FedAvg. The options of an algorithm are derived from it."""

    server_lr: Annotated[
        PositiveFloat, Parameter(help="Learning rate of the server optimizer.")
    ] = 1.0

    @property
    def state_names(self) -> tuple[str, ...]:
        """What is remembered from one step to the next: tensors of the model's schema, by name."""
        return ()

    def apply(self, model: Tensor, step: Tensor, state: Tensors) -> Applied:
        """Return the new model and the new state, all float64 of shape [window].

        Args:
            model: shape [window], of any floating-point dtype.
            step: float64, shape [window].
            state: float64 of shape [window], by name; empty at first.
        """
        import torch

        return model.to(torch.float64, copy=True).add_(step, alpha=self.server_lr), {}


@dataclass(frozen=True, kw_only=True)
class Momentum(Options):
    """SGD with momentum: FedAvgM's server.

    Hsu, Qi and Brown 2019 (arXiv 1909.06335), section 4: v = beta * v + step, w = w + rate * v.
    """

    server_momentum: Annotated[
        BelowOne,
        Parameter(
            help="Momentum of the server optimizer; beta1 of fedadagrad, fedadam and fedyogi."
        ),
    ] = 0.0

    @property
    def state_names(self) -> tuple[str, ...]:
        return (_MOMENTUM,) if self.server_momentum else ()

    def apply(self, model: Tensor, step: Tensor, state: Tensors) -> Applied:
        if self.server_momentum and _MOMENTUM in state:
            step = state[_MOMENTUM] * self.server_momentum + step
        new, _ = super().apply(model, step, state)
        return new, {_MOMENTUM: step} if self.server_momentum else {}


@dataclass(frozen=True, kw_only=True)
class Adagrad(Momentum):
    """FedAdagrad, and what FedAdam and FedYogi share: Reddi et al. 2021 (arXiv 2003.00295), alg. 2.

    m = beta1 * m + (1 - beta1) * step, v by each one's rule, w = w + rate * m / (sqrt(v) + tau).
    At first m is 0 and v is tau squared. There is no bias correction.
    """

    server_lr: PositiveFloat = 0.1
    server_tau: Annotated[
        PositiveFloat,
        Parameter(
            help="Tau, added to the root of the second moment, for fedadagrad, fedadam and fedyogi."
        ),
    ] = 1e-3

    @property
    def state_names(self) -> tuple[str, ...]:
        return (*super().state_names, _SECOND_MOMENT)

    def apply(self, model: Tensor, step: Tensor, state: Tensors) -> Applied:
        import torch

        m = state.get(_MOMENTUM, torch.zeros_like(step))
        m = m * self.server_momentum + step * (1 - self.server_momentum)
        v = state.get(_SECOND_MOMENT, torch.full_like(step, self.server_tau**2))
        v = self._second_moment(v, step.square())
        new = model.double() + m / (v.sqrt() + self.server_tau) * self.server_lr
        kept = {_MOMENTUM: m, _SECOND_MOMENT: v}
        return new, {name: kept[name] for name in self.state_names}

    def _second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        return v + square


@dataclass(frozen=True, kw_only=True)
class Adam(Adagrad):
    """FedAdam's server."""

    server_lr: PositiveFloat = 0.01
    server_momentum: BelowOne = 0.9
    server_beta2: Annotated[
        BelowOne, Parameter(help="Decay of the second moment (beta2), for fedadam and fedyogi.")
    ] = 0.99

    def _second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        return v * self.server_beta2 + square * (1 - self.server_beta2)


@dataclass(frozen=True, kw_only=True)
class Yogi(Adam):
    """FedYogi's server."""

    def _second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        import torch

        return v - square * torch.sign(v - square) * (1 - self.server_beta2)
