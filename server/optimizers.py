"""Server optimizers: how a step changes the global model, on one window of coordinates.

Pure: tensors in, tensors out. Knows nothing about files or where the step came from.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sgd:
    """SGD on the mean update; rate 1 without momentum is FedAvg, with it FedAvgM.

    Hsu, Qi and Brown 2019 (arXiv 1909.06335), section 4: v = beta * v + step, w = w + rate * v.
    """

    learning_rate: float = 1.0
    momentum: float = 0.0

    def apply(
        self, model: torch.Tensor, step: torch.Tensor, velocity: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the new model and the new velocity, both float64 of shape [window].

        Args:
            model: shape [window], of any dtype.
            step: float64, shape [window].
            velocity: float64, shape [window]; None is 0.
        """
        if velocity is not None and self.momentum:
            step = velocity * self.momentum + step
        return model.to(torch.float64, copy=True).add_(step, alpha=self.learning_rate), step
