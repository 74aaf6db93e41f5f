"""The default local training and evaluation: minibatch SGD over tensors held in memory.

A task may bring its own in their place. Knows nothing about partitions or the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from common.tasks.outputs import Outputs

Metrics = dict[str, float]
# Called after each local step with (steps done, steps in all); what it raises ends the training.
OnStep = Callable[[int, int], None]
Loss = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
OutputsLike = Callable[["torch.Tensor", "torch.Tensor"], "Outputs | None"]
Hyperparameter = str | float | bool

_EVALUATION_BATCH_SIZE = 512
# A matrix of more is no longer looked at.
_MOST_CLASSES = 100


class Evaluation(NamedTuple):
    """Means over the examples and, of a classifier, its confusion matrix."""

    metrics: Metrics
    # Examples by true class (rows) and predicted class (columns).
    confusion: list[list[int]] | None = None


class Trained(NamedTuple):
    """What belongs to an update: its weight n_k, the training's metrics, and what else counts."""

    num_examples: int
    metrics: Metrics
    # By name, such as "num_steps", the local steps.
    scalars: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a client trains in one round."""

    local_epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    # FedProx's mu: adds mu/2 * |w - w_global|^2 to the loss (Li et al. 2020, arXiv 1812.06127).
    proximal_mu: float = 0.0
    # For a task's own `train`, and for its models: numbers, strings and booleans by name.
    hyperparameters: Mapping[str, Hyperparameter] = field(default_factory=dict)


def train(
    model: torch.nn.Module,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    config: TrainConfig,
    loss: Loss,
    seed: int,
    on_step: OnStep,
) -> Metrics:
    """Train `model` in place; the local update of FedAvg (McMahan et al. 2017, algorithm 1).

    Where a batch gives a layer of batch normalisation one value per channel, as the last batch may
    with its one example, there is no variance to normalise by: that layer takes its running
    statistics then, and leaves them as they are.

    Args:
        model: on the same device as the examples.
        inputs: shape [n, ...], n at least 1.
        targets: shape [n, ...].
        config: epochs, batch size and the numbers of SGD.
        loss: the mean loss of a batch, from (outputs, targets).
        seed: of the order of the examples.
        on_step: called after each step.

    Returns:
        "loss", the mean training loss over the examples of all epochs.
    """
    import torch

    # The functional form: torch.optim.SGD's constructor imports torch's compiler, 3 s a process.
    from torch.optim.sgd import sgd

    model.train()
    parameters: list[torch.Tensor] = [p for p in model.parameters() if p.requires_grad]
    anchors = [p.detach().clone() for p in parameters] if config.proximal_mu else []
    velocities: list[torch.Tensor | None] = [None] * len(parameters)
    generator = torch.Generator().manual_seed(seed)
    count, size = len(inputs), config.batch_size
    steps = config.local_epochs * -(-count // size)
    total, step = torch.zeros((), device=targets.device), 0
    # Elsewhere, no layer needs looking at.
    singles = _single_examples(model) if 1 in (size, count % size) else nullcontext()
    with singles:
        for _ in range(config.local_epochs):
            order = torch.randperm(count, generator=generator).to(targets.device)
            for batch in torch.split(order, size):
                batch_loss = loss(model(inputs[batch]), targets[batch])
                # Zeros for a parameter that the batch did not touch.
                gradients = list(
                    torch.autograd.grad(batch_loss, parameters, materialize_grads=True)
                )
                with torch.no_grad():
                    if config.proximal_mu:
                        for gradient, parameter, anchor in zip(
                            gradients, parameters, anchors, strict=True
                        ):
                            gradient.add_(parameter - anchor, alpha=config.proximal_mu)
                    sgd(
                        parameters,
                        gradients,
                        velocities,
                        lr=config.learning_rate,
                        momentum=config.momentum,
                        weight_decay=config.weight_decay,
                        dampening=0.0,
                        nesterov=False,
                        maximize=False,
                    )
                total += batch_loss.detach() * len(batch)
                step += 1
                on_step(step, steps)
    return {"loss": total.item() / (count * config.local_epochs)}


@contextmanager
def _single_examples(model: torch.nn.Module) -> Iterator[None]:
    """Let batch normalisation take its running statistics where there is no variance."""
    from torch.nn.modules.batchnorm import _BatchNorm

    def choose(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        # More than one value for each channel.
        layer.training = inputs[0].numel() > inputs[0].shape[1]

    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    # One that its task has frozen stays so.
    learning = [layer for layer in layers if layer.training and layer.track_running_stats]
    hooks = [layer.register_forward_pre_hook(choose) for layer in learning]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in learning:
            layer.training = True


def evaluate(
    model: torch.nn.Module,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    loss: Loss,
    outputs_like: OutputsLike | None = None,
) -> Evaluation:
    """Evaluate a model in one pass: "loss" and what its outputs are measured by, means.

    The confusion matrix is there where an example has one class, of at most 100.

    Args:
        model: on the examples' device.
        inputs: shape [n, ...], n at least 1.
        targets: shape [n, ...].
        loss: the mean loss of a batch, from (outputs, targets).
        outputs_like: says what outputs are, from (outputs, targets); without it, they are
            classes if their shape and the targets' are those of classes. Of what is nothing
            known, there is only the loss.

    Raises:
        InputError: outputs or targets are not such as `outputs_like` says.
    """
    import torch

    from common.tasks.outputs import classes_like

    outputs_like = outputs_like or classes_like
    model.eval()
    sums: Metrics = {}
    confusion: torch.Tensor | None = None
    with torch.inference_mode():
        for start in range(0, len(targets), _EVALUATION_BATCH_SIZE):
            batch = slice(start, start + _EVALUATION_BATCH_SIZE)
            y = targets[batch]
            found = model(inputs[batch])
            means = {"loss": loss(found, y).item()}
            kind = outputs_like(found, y)
            if kind is not None:
                means |= kind.measure(found, y)
                if kind.kind == "classes" and found.shape[1] <= _MOST_CLASSES and y.ndim == 1:
                    counts = _count(found.argmax(1), y, found.shape[1])
                    confusion = counts if confusion is None else confusion + counts
            for name, value in means.items():
                sums[name] = sums.get(name, 0.0) + value * len(y)
    metrics = {name: total / len(targets) for name, total in sums.items()}
    return Evaluation(metrics, None if confusion is None else confusion.tolist())


def _count(predicted: torch.Tensor, targets: torch.Tensor, classes: int) -> torch.Tensor:
    """Return how many examples of each true class (rows) were taken for each class (columns)."""
    import torch

    # An index that is no class, such as one to ignore, counts nowhere.
    known = (targets >= 0) & (targets < classes)
    cells = targets[known] * classes + predicted[known]
    return torch.bincount(cells, minlength=classes**2).reshape(classes, classes)
