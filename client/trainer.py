"""One assignment's work: from the global model's tensors to an update, or to an evaluation.

The same seed gives the same bytes. Knows nothing about the wire.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import torch

from client.data import LocalData
from common.algorithms import ClientHalf
from common.algorithms.base import NUM_STEPS
from common.errors import FolkmootError, InputError, TensorError
from common.seeds import derive_seed
from common.tasks import Examples, Task
from common.tensor_roles import TensorRoles
from common.tensors import check_finite
from common.training import Hyperparameter, Metrics, OnStep, TrainConfig, Trained


class WorkFailed(FolkmootError):
    """The work can't be done; `reason` is a TaskFailure's."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Trainer:
    """Trains and evaluates one model object, which the clients of a process take turns with.

    Args:
        task: brings the model, its training and its evaluation.
        model_name: one of the task's.
        device: where the model is.
        local: the names of the tensors that stay with each client.
        seed: of what these are at first, for all clients.
        hyperparameters: what the model is made by, too.
    """

    def __init__(
        self,
        task: Task,
        model_name: str,
        device: str,
        local: Iterable[str] = (),
        seed: int = 0,
        hyperparameters: Mapping[str, Hyperparameter] = MappingProxyType({}),
    ) -> None:
        self._task = task
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "local layers"))
            self._model = task.build(model_name, hyperparameters).to(device)
        self.roles = TensorRoles.of(self._model, local)
        self.initial_layers = self.local_layers()

    @property
    def model_size_bytes(self) -> int:
        """Bytes of the values that travel."""
        tensors = self._model.state_dict().items()
        return sum(value.nbytes for name, value in tensors if name not in self.roles.stays)

    def local_layers(self) -> dict[str, torch.Tensor]:
        """Return a copy of what stays with a client, as the last work has left it."""
        tensors = self._model.state_dict()
        return {name: tensors[name].to("cpu", copy=True) for name in sorted(self.roles.stays)}

    def own_layers(self) -> dict[str, torch.Tensor]:
        """Return of `local_layers` what work has changed: a frozen part needs keeping nowhere."""
        return {
            name: value
            for name, value in self.local_layers().items()
            if not torch.equal(value, self.initial_layers[name])
        }

    def has(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Say whether the task's model has tensors of these names and shapes."""
        known = {name: spec.shape for name, spec in self.roles.schema.items()}
        return all(known.get(name) == value.shape for name, value in tensors.items())

    def train(
        self,
        base: Mapping[str, torch.Tensor],
        update: Mapping[str, torch.Tensor],
        data: LocalData,
        config: TrainConfig,
        seed: int,
        on_step: OnStep,
        half: ClientHalf | None = None,
    ) -> Trained:
        """Train from `base` on the partition's training part; write local - base into `update`.

        `base` has all tensors of the model, `update` those that travel; it may be the same
        tensors, which it then replaces. `half` is what the run's algorithm has clients do.

        Raises:
            WorkFailed: the model diverged to NaN or infinity.
        """
        steps = 0

        def count(done: int, total: int) -> None:
            nonlocal steps
            steps = done
            on_step(done, total)

        self._load(base)
        metrics = self._train(data, config, seed, count, half)
        if half is not None and not steps:
            raise WorkFailed("STEPS_UNKNOWN", "the task's training never calls on_step")
        local = self._model.state_dict()
        for name, tensor in update.items():
            torch.sub(local[name].cpu(), base[name], out=tensor)
        scalars = {} if half is None else half.after(update, steps)
        try:
            check_finite({**update, **self.local_layers()})
        except TensorError as error:
            message = f"{error}; {_remedy(data.train)}"
            raise WorkFailed("UPDATE_NOT_FINITE", message) from error
        if not all(math.isfinite(value) for value in metrics.values()):
            message = f"the training loss is not finite; {_remedy(data.train)}"
            raise WorkFailed("LOSS_NOT_FINITE", message)
        return Trained(len(data.train.inputs), metrics, {NUM_STEPS: steps, **scalars})

    def evaluate(
        self,
        base: Mapping[str, torch.Tensor],
        data: LocalData,
        fine_tune: TrainConfig | None,
        seed: int,
        on_step: OnStep,
    ) -> tuple[int, Metrics]:
        """Return the validation part's size, and the model's finite means over it.

        With `fine_tune` those after training, too, as fine_tuned_<name>; it is not kept.
        """
        if not len(data.validation.inputs):
            return 0, {}
        self._load(base)
        metrics = self._task.evaluate(self._model, data.validation).metrics
        if fine_tune is not None:
            self._train(data, fine_tune, seed, on_step)
            tuned = self._task.evaluate(self._model, data.validation).metrics
            metrics = metrics | {f"fine_tuned_{name}": value for name, value in tuned.items()}
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        return len(data.validation.inputs), finite

    def _train(
        self,
        data: LocalData,
        config: TrainConfig,
        seed: int,
        on_step: OnStep,
        half: ClientHalf | None = None,
    ) -> Metrics:
        # For layers that draw, such as dropout; the order of examples has a generator of its own.
        with torch.random.fork_rng(), self._hooked(half):
            torch.manual_seed(seed)
            return self._task.train(self._model, data.train, config, seed, on_step)

    @contextmanager
    def _hooked(self, half: ClientHalf | None) -> Iterator[None]:
        """Let gradients be changed as they are computed, whatever code takes the steps."""
        hooks = [
            parameter.register_hook(change)  # type: ignore[no-untyped-call]
            for name, parameter in self._model.named_parameters()
            if half is not None
            and parameter.requires_grad
            and (change := half.on_gradient(name, parameter)) is not None
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _load(self, base: Mapping[str, torch.Tensor]) -> None:
        self._model.load_state_dict(dict(base))


def _remedy(examples: Examples) -> str:
    """Return what to do about a model that diverged on these examples."""
    for name, values in examples._asdict().items():
        if not isinstance(values, torch.Tensor) or not values.is_floating_point():
            continue
        wrong = (~values.isfinite().reshape(len(values), -1).all(1)).sum().item()
        if wrong:
            return (
                f"the {name} of {wrong} of its {len(values)} examples hold NaN or infinity: "
                "mend its data, or leave them out"
            )
    return "a smaller --lr may help"


def choose_device(wanted: str) -> str:
    """Return the torch device for --device; auto takes CUDA, then MPS, then the CPU.

    Raises:
        InputError: the device is not there.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return next(device for device, available in there.items() if available)
    if not there[wanted]:
        raise InputError(f"--device: there is no {wanted} here; use auto or cpu")
    return wanted
