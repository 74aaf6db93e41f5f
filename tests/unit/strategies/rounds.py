"""One round of a strategy, in memory."""

import torch


def one_round(strategy, updates, cohort, model=None, state=None):
    """Return the new model; from zeros if none is given."""
    return full_round(strategy, updates, cohort, model, state)[0]


def full_round(strategy, updates, cohort, model=None, state=None):
    """Return the new model and the new state."""
    model = torch.zeros(len(updates[0]), dtype=torch.float64) if model is None else model
    measured = strategy.measure(updates) if strategy.measures else None
    plan = strategy.plan(cohort, measured)
    return strategy.apply(model, updates, plan, state or {})
