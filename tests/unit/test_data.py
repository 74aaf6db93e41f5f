"""Each partition's own examples, of the data that a process loads once."""

from pathlib import Path

import pytest
import torch

from client.data import load_partitions
from common.errors import DataError, InputError
from common.splits import Partitioner, Split
from common.tasks import Examples, Task

SPLIT = Split(
    partitioner=Partitioner.IID,
    num_partitions=5,
    alpha=1.0,
    shards_per_client=1,
    seed=0,
    validation_fraction=0.25,
)


class Given(Task):
    """A task whose training examples are those of the test."""

    models = {}

    def __init__(self, inputs, targets):
        self.examples = Examples(inputs, targets)
        self.loads = 0

    def data(self, *_, train):
        assert train
        self.loads += 1
        return self.examples


def numbered(count=60):
    """Return a task whose inputs are 0, 1, 2 ... and whose targets are ten times that."""
    return Given(torch.arange(count), 10 * torch.arange(count))


def held_by(task, indices, split=SPLIT):
    return load_partitions(task, Path("unused"), split, indices, "cpu")


def test_partitions_are_disjoint_and_cover_all_examples():
    held = held_by(numbered(), [0, 1, 2, 3, 4])
    parts = [part for data in held.values() for part in data]
    assert sorted(torch.cat([part.inputs for part in parts]).tolist()) == list(range(60))


def test_inputs_keep_their_targets():
    for part in held_by(numbered(), [2])[2]:
        assert torch.equal(part.targets, 10 * part.inputs)


def test_a_share_of_each_partition_is_held_out():
    data = held_by(numbered(), [1])[1]
    assert (len(data.train.inputs), len(data.validation.inputs)) == (9, 3)


def test_a_partition_is_the_same_whichever_others_the_process_holds():
    alone, together = held_by(numbered(), [3])[3], held_by(numbered(), [1, 3])[3]
    assert torch.equal(alone.train.inputs, together.train.inputs)
    assert torch.equal(alone.validation.inputs, together.validation.inputs)


def test_the_data_is_loaded_once_for_all_partitions():
    task = numbered()
    assert list(held_by(task, [0, 1, 4])) == [0, 1, 4]
    assert task.loads == 1


def test_targets_of_several_numbers_are_divided_by_the_first():
    task = Given(torch.arange(60), torch.stack([torch.arange(60) % 5, torch.arange(60)], 1))
    shards = Split(**vars(SPLIT) | {"partitioner": Partitioner.SHARDS})
    for data in held_by(task, [0, 1, 2, 3, 4], shards).values():
        assert len(data.train.targets[:, 0].unique()) == 1


@pytest.mark.parametrize(("inputs", "targets"), [(3, 2), (0, 0)])
def test_examples_without_targets_or_none_at_all_are_an_error(inputs, targets):
    task = Given(torch.zeros(inputs), torch.zeros(targets, dtype=torch.int64))
    with pytest.raises(DataError, match=f"{inputs} inputs and {targets} targets"):
        held_by(task, [0])


def test_data_that_cannot_be_divided_so_is_an_error():
    with pytest.raises(InputError, match="--num-partitions"):
        held_by(numbered(4), [0])


def test_a_partition_that_the_run_has_not_is_an_error_that_names_the_flag():
    with pytest.raises(InputError, match="--partition"):
        held_by(numbered(), [4, 5])
