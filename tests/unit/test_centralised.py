"""The training on pooled data sees each example once a pass, and stops where it is told."""

import numpy as np
import torch
from torch import nn

from common.splits import Partitioner, Split, hold_out
from common.tasks import Examples, Task
from common.training import Evaluation, TrainConfig
from scripts.reproduction.centralised import pool, train
from scripts.reproduction.compare import _points


class Recording(Task):
    """Notes the examples that it is trained on."""

    models = {"linear": lambda: nn.Linear(1, 1)}

    def __init__(self):
        self.seen = []
        self.configs = []

    def data(self, data_dir, train):
        raise NotImplementedError

    def train(self, model, examples, config, seed, on_step):
        self.seen.extend(examples.inputs.tolist())
        self.configs.append(config)
        return {}

    def evaluate(self, model, examples):
        return Evaluation({"accuracy": float(len(self.seen))})


def test_it_processes_whole_batches_up_to_what_was_asked_each_example_once_a_pass():
    task = Recording()
    pooled = Examples(torch.arange(10), torch.arange(10))
    config = TrainConfig(local_epochs=5, batch_size=4, learning_rate=0.3, proximal_mu=1.0)
    points = list(train(task, nn.Linear(1, 1), pooled, pooled, config, 0, [7, 13, 31]))
    assert [point.examples for point in points] == [8, 12, 32]
    assert [point.metrics["accuracy"] for point in points] == [8, 12, 32]
    passes = [sorted(task.seen[start : start + 10]) for start in (0, 10, 20)]
    assert passes == [list(range(10))] * 3
    assert task.seen[:10] != task.seen[10:20]
    used = task.configs[0]
    assert (used.local_epochs, used.learning_rate, used.proximal_mu) == (1, 0.3, 0.0)


def test_the_pool_is_what_the_partitions_train_on_each_example_once():
    split = Split(
        partitioner=Partitioner.NONE,
        num_partitions=2,
        alpha=1.0,
        shards_per_client=1,
        seed=0,
        validation_fraction=0.5,
    )
    examples = Examples(torch.arange(100, 120), torch.arange(20))
    parts = [np.arange(0, 12), np.arange(4, 16)]
    pooled = pool(examples, parts, split)
    trained = {int(i) for n, part in enumerate(parts) for i in hold_out(part, split, n)[0]}
    assert pooled.targets.tolist() == sorted(trained)
    assert (pooled.inputs - pooled.targets == 100).all()


def test_a_point_stands_after_all_that_came_before_it():
    rows = [
        {"round": 1, "num_examples": 10, "duration_seconds": 1.0, "global_accuracy": None},
        {"round": 2, "num_examples": 20, "duration_seconds": 2.0, "global_accuracy": 0.5},
    ]
    assert _points(rows, epochs=3) == [(2, 90, 3.0, 0.5)]
