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


def with_(partitioner):
    return Split(**vars(SPLIT) | {"partitioner": partitioner})


def test_targets_of_several_numbers_are_divided_but_not_by_class():
    task = Given(torch.arange(60), torch.zeros(60, 8))
    held = held_by(task, [0, 1, 2, 3, 4], with_(Partitioner.QUANTITY))
    assert sum(len(part.inputs) for data in held.values() for part in data) == 60
    with pytest.raises(InputError, match="--partitioner: shards divides by class"):
        held_by(task, [0], with_(Partitioner.SHARDS))


def test_a_natural_partition_holds_one_owners_examples():
    task = numbered()
    task.owners = lambda _: ["b" if number % 3 else "a" for number in range(60)]
    natural = Split(**vars(with_(Partitioner.NATURAL)) | {"num_partitions": 2})
    held = held_by(task, [0, 1], natural)
    sizes = [(len(data.train.inputs), len(data.validation.inputs)) for data in held.values()]
    assert sizes == [(30, 10), (15, 5)]
    assert not held[1].train.inputs.remainder(3).any()


def test_as_many_owners_as_examples_are_wanted():
    task = numbered()
    task.owners = lambda _: ["a"] * 59
    with pytest.raises(DataError, match="60 examples and 59 owners"):
        held_by(task, [0], with_(Partitioner.NATURAL))


def test_a_task_that_knows_no_owners_says_so():
    with pytest.raises(InputError, match="--partitioner natural: task Given does not say"):
        held_by(numbered(), [0], with_(Partitioner.NATURAL))


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
