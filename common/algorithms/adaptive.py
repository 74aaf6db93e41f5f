"""FedAdagrad, FedAdam and FedYogi: FedAvg whose step is taken by an adaptive server optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from cyclopts import Parameter

from common.algorithms.base import Algorithm, Momentum
from common.algorithms.optimizers import Adaptive, SecondMoment
from common.option_types import BelowOne, PositiveFloat


@dataclass(frozen=True, kw_only=True)
class AdagradOptions(Momentum):
    """FedAdagrad's options."""

    kind: ClassVar[SecondMoment] = SecondMoment.ADAGRAD
    server_lr: PositiveFloat = 0.1
    server_tau: Annotated[
        PositiveFloat,
        Parameter(
            help="What is added to the second moment's root, for fedadagrad, fedadam and fedyogi."
        ),
    ] = 1e-3

    @property
    def optimizer(self) -> Adaptive:
        """See `Options`."""
        return self._optimizer(0.0)

    def _optimizer(self, beta2: float) -> Adaptive:
        return Adaptive(
            kind=self.kind,
            learning_rate=self.server_lr,
            beta1=self.server_momentum,
            beta2=beta2,
            tau=self.server_tau,
        )


@dataclass(frozen=True, kw_only=True)
class AdamOptions(AdagradOptions):
    """FedAdam's options."""

    kind = SecondMoment.ADAM
    server_lr: PositiveFloat = 0.01
    server_momentum: BelowOne = 0.9
    server_beta2: Annotated[
        BelowOne, Parameter(help="Decay of the second moment, for fedadam and fedyogi.")
    ] = 0.99

    @property
    def optimizer(self) -> Adaptive:
        """See `Options`."""
        return self._optimizer(self.server_beta2)


@dataclass(frozen=True, kw_only=True)
class YogiOptions(AdamOptions):
    """FedYogi's options."""

    kind = SecondMoment.YOGI


class FedAdagrad(Algorithm):
    """Reddi et al. 2021 (arXiv 2003.00295), algorithm 2."""

    takes = AdagradOptions


class FedAdam(Algorithm):
    """Reddi et al. 2021 (arXiv 2003.00295), algorithm 2."""

    takes = AdamOptions


class FedYogi(Algorithm):
    """Reddi et al. 2021 (arXiv 2003.00295), algorithm 2."""

    takes = YogiOptions
