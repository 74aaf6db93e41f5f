"""An own strategy that uses all that one can: both halves, and each kind of state."""

from dataclasses import dataclass

import torch

from common.algorithms import Algorithm, ClientHalf, Plan
from common.option_types import BelowOne


class Pulled(ClientHalf):
    """Pulls each gradient towards the server's mean step, and keeps the update of last time."""

    payloads = ("slow",)

    def on_gradient(self, name, parameter):
        towards = self.given.payloads.get("slow", {}).get(name, torch.zeros(()))
        towards = towards + (self.given.kept or {}).get(name, torch.zeros(()))
        return lambda gradient: gradient - self.given.scalars["pull"] * towards

    def after(self, update, num_steps):
        self.kept = {name: tensor.clone() for name, tensor in update.items()}
        return {"length": float(sum(tensor.square().sum() for tensor in update.values()))}


class Whole(Algorithm):
    """Counts rounds and the clients' lengths in its notes, and keeps a mean of the steps."""

    @dataclass(frozen=True, kw_only=True)
    class Options(Algorithm.Options):
        pull: BelowOne = 0.1

    client = Pulled
    state_names = ("slow",)

    def scalars(self, notes):
        return {"pull": self.options.pull / (1 + notes.get("rounds", 0))}

    def plan(self, cohort, measured, notes):
        weights = [one.weight / (1 + one.scalars["length"]) for one in cohort]
        rounds = notes.get("rounds", 0) + 1
        lengths = (*notes.get("lengths", ()), sum(one.scalars["length"] for one in cohort))
        return Plan(cohort, weights, sum(weights), {"rounds": rounds, "lengths": lengths})

    def apply(self, model, updates, plan, state):
        step = self.combine(updates, plan)
        slow = step if "slow" not in state else 0.5 * state["slow"] + 0.5 * step
        return model + slow, {"slow": slow}


class Failing(Algorithm):
    """Whose own code fails."""

    def plan(self, cohort, measured, notes):
        raise KeyError("mine")


class Hoarding(Algorithm):
    """Keeps what no JSON can hold."""

    def plan(self, cohort, measured, notes):
        return super().plan(cohort, measured, notes)._replace(notes={"kept": {1, 2}})


NOT_ONE = object
