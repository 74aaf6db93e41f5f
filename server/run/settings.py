"""What the run's options say to the rooms of `run`."""

from dataclasses import dataclass

from common.tensor_roles import TensorRoles
from common.training import TrainConfig
from server.run.limits import Limits


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What the coordinator needs of the run's options."""

    run_id: str
    seed: int
    target_accuracy: float | None
    patience: int | None
    keep_rounds: int
    limits: Limits
    max_share: float
    max_norm_ratio: float
    training: TrainConfig
    # Of the model: those that optimizers step, and those that stay with their clients.
    roles: TensorRoles
