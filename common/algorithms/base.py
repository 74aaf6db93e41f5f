"""What an algorithm is: a server's half, perhaps a client's half, and the options of both.

The server's half makes a plan for the cohort, then does the same arithmetic on each window: a part
of the coordinates, so that memory does not grow with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeAlias

from common.algorithms import optimizers
from common.algorithms.optimizers import Applied, Tensor, Tensors
from common.algorithms.weighting import weighted_mean
from common.errors import FolkmootError, InputError
from common.training import TrainConfig

# What an algorithm keeps from round to round beside tensors: values that JSON can hold.
Notes: TypeAlias = Mapping[str, Any]
# What travels to the clients, and what their messages count by.
Scalars: TypeAlias = Mapping[str, float | str | bool]
OnGradient: TypeAlias = Callable[[Tensor], Tensor]

_NONE: Notes = MappingProxyType({})
NUM_STEPS = "num_steps"


class CannotAggregate(FolkmootError):
    """The updates, each valid by itself, make no new model."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What an algorithm knows of its run.

    Args:
        name: of the algorithm, as --strategy has it.
        training: of the clients.
        num_clients: of the whole federation.
        wanted: the updates that a round wants at most.
        max_share: of the mean that one client may have.
    """

    name: str
    training: TrainConfig
    num_clients: int = 1
    wanted: int = 1
    max_share: float = 1.0


class Contribution(NamedTuple):
    """An update, beside its values: its weight (n_k, perhaps capped), and its client's scalars."""

    weight: float
    scalars: Mapping[str, float]

    @property
    def num_steps(self) -> int:
        """The local steps that the client says to have taken; see `Algorithm.needs_steps`."""
        return int(self.scalars[NUM_STEPS])


Cohort: TypeAlias = Sequence[Contribution]


class Plan(NamedTuple):
    """How much each update of a cohort counts: the step is sum(weight * update) / total.

    No weights: the step is no such sum. `notes` are kept for the next round.
    """

    cohort: Cohort
    weights: Sequence[float] = ()
    total: float = 1.0
    notes: Notes = _NONE

    @property
    def shares(self) -> list[float | None]:
        """Each update's part of the step; None where no such part can be told."""
        if not self.weights:
            return [None] * len(self.cohort)
        return [weight / self.total for weight in self.weights]


class ClientRound(NamedTuple):
    """What a client's half has at hand in one round.

    Args:
        scalars: the server's (`Algorithm.scalars`); numbers are floats.
        payloads: the server's tensors (`ClientHalf.payloads`), of the model's schema; those that
            it does not have yet are left out.
        kept: what this client kept when the server last counted an update of it; empty at first,
            None if it is lost.
        training: how the client trains.
        trained: the names of the tensors that local steps change.
    """

    scalars: Scalars
    payloads: Mapping[str, Tensors]
    kept: Tensors | None
    training: TrainConfig
    trained: frozenset[str]


class ClientHalf:
    """What a client does in a round beyond local training; it begins before the first step."""

    # The name under which `kept` lies in the client's --state-dir.
    keeps: ClassVar[str] = "algorithm"
    # Of what the server keeps from round to round, the tensors that it is given.
    payloads: ClassVar[tuple[str, ...]] = ()

    def __init__(self, given: ClientRound) -> None:
        self.given = given
        # Of float or integer tensors by their names in the model, and of their shapes.
        self.kept: Tensors = {}

    def on_gradient(self, name: str, parameter: Tensor) -> OnGradient | None:
        """Return what each gradient of a parameter is put through; None leaves it as it is."""

    def after(self, update: Tensors, num_steps: int) -> Mapping[str, float]:
        """Look at the finished update, or change it in place; set `kept`.

        Args:
            update: local minus global; the tensors that travel.
            num_steps: the local steps taken, at least 1.

        Returns:
            what the server is told beside the tensors: finite numbers by name, at most 31.
        """
        return {}


class Algorithm:
    """Combines updates into a step, which the server optimizer takes; here by n_k, as FedAvg.

    Subclasses replace `plan`, `combine`, or what is kept from round to round.
    """

    # The class of its options, which are those of its server optimizer, too.
    Options: ClassVar[type[optimizers.Options]] = optimizers.Options
    # What clients do beyond local training; None is nothing.
    client: ClassVar[type[ClientHalf] | None] = None
    # Whether an update counts only with the number of its local steps.
    needs_steps: ClassVar[bool] = False
    # Whether an update counts by its examples; otherwise all count alike.
    weighs: ClassVar[bool] = True
    # Whether it bounds by itself what a long update does, and needs all of them.
    bounds_norms: ClassVar[bool] = False
    # --proximal-mu where neither user nor task gives one; None: it has no proximal term.
    proximal_mu: ClassVar[float | None] = None

    def __init__(self, options: optimizers.Options, setting: Setting) -> None:
        self.options = options
        self.setting = setting

    def check(self) -> None:
        """Refuse what makes no sense, before the run begins.

        Raises:
            InputError: names the flag and the reason.
        """
        name = self.setting.name
        if self.setting.max_share < 1 and not self.weighs:
            raise InputError(
                f"--max-share: with --strategy {name} all updates count alike; leave it out"
            )
        if self.setting.max_share < 1 and self.needs_steps:
            raise InputError(
                f"--max-share: --strategy {name} also counts the steps that clients claim, which "
                "no share bounds; leave it out, or use another strategy"
            )

    @property
    def measures(self) -> bool:
        """Whether it looks at the updates before it plans, which takes one more pass over them."""
        return type(self).measure is not Algorithm.measure

    @property
    def state_names(self) -> tuple[str, ...]:
        """What is kept from round to round: tensors of the model's schema, by name."""
        return self.options.state_names

    def scalars(self, notes: Notes) -> Scalars:
        """Return what the clients' half is told beside its payloads; the options, if not replaced.

        Args:
            notes: as the round before left them; empty in the first.
        """
        return {name: value for name, value in asdict(self.options).items() if value is not None}

    def objection(self, scalars: Mapping[str, float], most_steps: int) -> str | None:
        """Return why what a client says beside its update can't be; None if it can.

        Args:
            scalars: the client's; finite.
            most_steps: as many local steps as its examples and the run's options make.
        """
        steps = scalars.get(NUM_STEPS, 0.0)
        if self.needs_steps and not (steps.is_integer() and 1 <= steps <= most_steps):
            return f"scalars: {NUM_STEPS} must be 1 to {most_steps}, as many batches as there are"
        return None

    def measure(self, updates: Sequence[Tensor]) -> Tensor:
        """Return what `plan` needs to know of a window of floating-point values.

        Args:
            updates: of shape [window] each.

        Returns:
            float64, of any one shape; the windows' are added up in order.
        """
        raise NotImplementedError

    def plan(self, cohort: Cohort, measured: Tensor | None, notes: Notes) -> Plan:
        """Return how much each update counts.

        Args:
            cohort: at least one, in client_id order.
            measured: the sum of what `measure` returned; None if the algorithm measures nothing.
            notes: as the round before left them; empty in the first.

        Raises:
            CannotAggregate: these updates are too few, or not what the algorithm needs.
        """
        weights = [one.weight for one in cohort] if self.weighs else []
        return Plan(cohort, weights, sum(weights))

    def combine(self, updates: Sequence[Tensor], plan: Plan) -> Tensor:
        """Return the step of a window.

        Args:
            updates: of shape [window] each, of any one dtype, in the plan's order.
            plan: the cohort's.

        Returns:
            float64, shape [window].
        """
        return weighted_mean(updates, plan.weights, plan.total)

    def mean(self, updates: Sequence[Tensor], plan: Plan) -> Tensor:
        """Return by how much what isn't trained changes, such as BatchNorm's running variance.

        No server optimizer has a part in it. Arguments and result are those of `combine`.
        """
        return self.combine(updates, plan)

    def apply(
        self, model: Tensor, updates: Sequence[Tensor], plan: Plan, state: Tensors
    ) -> Applied:
        """Return a window of the new model and of the new state, all float64.

        Args:
            model: floating-point values, shape [window].
            updates: of shape [window] each, in the plan's order.
            plan: the cohort's.
            state: float64 windows by name, as the round before left them; empty in the first.
        """
        return self.options.apply(model, self.combine(updates, plan), state)
