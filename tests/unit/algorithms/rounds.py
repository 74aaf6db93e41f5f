"""An algorithm, and one round of it, in memory."""

import torch

from common.algorithms import Contribution, Setting
from common.training import TrainConfig


def made(kind, *, lr=0.1, momentum=0.0, proximal_mu=0.0, num_clients=1, **options):
    """Return an algorithm; the first values are of the clients' SGD and of the federation."""
    training = TrainConfig(learning_rate=lr, momentum=momentum, proximal_mu=proximal_mu)
    setting = Setting(name=kind.__name__, training=training, num_clients=num_clients)
    return kind(kind.Options(**options), setting)


def counted(weight, num_steps):
    """Return what an update of so many steps contributes."""
    return Contribution(weight, {"num_steps": float(num_steps)})


def one_round(strategy, updates, cohort, model=None, state=None):
    """Return the new model; from zeros if none is given."""
    return full_round(strategy, updates, cohort, model, state)[0]


def full_round(strategy, updates, cohort, model=None, state=None):
    """Return the new model and the new state."""
    model = torch.zeros(len(updates[0]), dtype=torch.float64) if model is None else model
    measured = strategy.measure(updates) if strategy.measures else None
    plan = strategy.plan(cohort, measured, {})
    return strategy.apply(model, updates, plan, state or {})
