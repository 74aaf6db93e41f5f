"""Tiny's data as the processes divide it among clients."""

import torch

from common.splits import Partitioner, Split, hold_out, partition
from common.tasks import load_task
from tests.e2e.harness import TASK


def tiny_shares(count, seed):
    """Return the task, its training data, and the indices that each of the clients trains on."""
    task = load_task(TASK)
    data = task.data(None, train=True)
    split = Split(
        partitioner=Partitioner.DIRICHLET,
        num_partitions=count,
        alpha=0.5,
        shards_per_client=2,
        seed=seed,
        validation_fraction=0.1,
    )
    parts = partition(data.targets.numpy(), split)
    return task, data, [torch.from_numpy(hold_out(parts[i], split, i)[0]) for i in range(count)]
