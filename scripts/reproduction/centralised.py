"""The training that federated learning is measured against: one process, all clients' data.

Knows nothing about servers; what the federated run was like comes as a configuration.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from common.seeds import derive_seed
from common.splits import Indices, Split, hold_out
from common.tasks import Examples, Task
from common.training import Metrics, TrainConfig


@dataclass(frozen=True)
class Point:
    """Where a training stands: examples processed, seconds gone by, and held-out metrics."""

    examples: int
    seconds: float
    metrics: Metrics


def pool(examples: Examples, parts: Sequence[Indices], split: Split) -> Examples:
    """Return the examples that some partition trains on, each once."""
    trained = [hold_out(part, split, index)[0] for index, part in enumerate(parts)]
    chosen = torch.from_numpy(np.unique(np.concatenate(trained)))
    return Examples(examples.inputs[chosen], examples.targets[chosen])


def train(
    task: Task,
    model: torch.nn.Module,
    pooled: Examples,
    held_out: Examples,
    config: TrainConfig,
    seed: int,
    stops: Sequence[int],
) -> Iterator[Point]:
    """Train `model` in place, and evaluate it each time so many examples have been processed.

    The configuration is the clients'; its epochs and FedProx's pull have no meaning here. The
    order of the examples is another in each pass over them. Momentum begins anew at each stop, as
    it does in each round at the clients. `stops` are numbers of examples
    processed since the beginning, ascending; it stops at the nearest whole batch, because a step
    with the two examples that are left over can undo much of what a single model has learned.
    """
    config = replace(config, local_epochs=1, proximal_mu=0.0)
    generator = torch.Generator().manual_seed(derive_seed(seed, "pooled"))
    waiting = torch.empty(0, dtype=torch.int64)
    size = config.batch_size
    most = max(1, len(pooled.inputs) // size) * size
    done, began = 0, time.monotonic()
    for stop in stops:
        until = round(stop / size) * size
        while done < until:
            count = min(until - done, most)
            while len(waiting) < count:
                order = torch.randperm(len(pooled.inputs), generator=generator)
                waiting = torch.cat([waiting, order])
            chosen, waiting = waiting[:count], waiting[count:]
            part = Examples(pooled.inputs[chosen], pooled.targets[chosen])
            task.train(model, part, config, derive_seed(seed, "pooled", done), _ignore)
            done += count
        metrics = task.evaluate(model, held_out).metrics
        yield Point(done, time.monotonic() - began, metrics)


def _ignore(_: int, __: int) -> None:
    """What a training says after each step is for clients."""
