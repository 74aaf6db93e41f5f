"""How the data is divided among partitions."""

import typing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.splits import Partitioner, Split, check_targets, hold_out, partition
from common.tasks.base import Scheme
from protos import federated_pb2 as pb

# The same examples each time.
PROFILE = settings(derandomize=True, deadline=None, database=None, max_examples=50)
LABELS = np.arange(60) % 5
# a 30 of them, b 15, d 8 and c 7.
OWNERS = ["abac"[i % 4] if i < 30 else "abad"[i % 4] for i in range(60)]
SPLIT = Split(
    partitioner=Partitioner.IID,
    num_partitions=4,
    alpha=0.5,
    shards_per_client=2,
    seed=3,
    validation_fraction=0.2,
)
DIVIDING = [Partitioner.IID, Partitioner.DIRICHLET, Partitioner.SHARDS, Partitioner.QUANTITY]


def split(partitioner, **values):
    return replace(SPLIT, partitioner=partitioner, **values)


def listed(parts):
    return [part.tolist() for part in parts]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize("partitioner", DIVIDING)
def test_each_example_is_in_exactly_one_partition_and_none_is_empty(partitioner, count, seed):
    labels = np.random.default_rng(9).integers(0, 10, 500)
    parts = partition(labels, split(partitioner, num_partitions=count, seed=seed))
    assert len(parts) == count
    assert all(len(part) for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(500))


# A change of these changes what --partition 3 means: other machines then hold other examples.
@pytest.mark.parametrize(
    ("partitioner", "sizes", "second"),
    [
        (Partitioner.IID, [15, 15, 15, 15], [1, 4, 11, 12, 13, 18]),
        (Partitioner.DIRICHLET, [6, 21, 12, 21], [3, 6, 11, 14, 16, 19]),
        (Partitioner.SHARDS, [14, 15, 16, 15], [0, 3, 7, 15, 20, 25]),
        (Partitioner.QUANTITY, [15, 27, 13, 5], [1, 4, 10, 11, 12, 13]),
        (Partitioner.NATURAL, [30, 15, 8, 7], [1, 5, 9, 13, 17, 21]),
        (Partitioner.NONE, [60, 60, 60, 60], [0, 1, 2, 3, 4, 5]),
    ],
)
def test_the_division_is_the_same_on_every_machine_and_in_every_version(partitioner, sizes, second):
    parts = partition(LABELS, split(partitioner), OWNERS)
    assert [len(part) for part in parts] == sizes
    assert parts[1][:6].tolist() == second


@pytest.mark.parametrize("partitioner", DIVIDING)
def test_the_division_depends_on_the_seed_only(partitioner):
    np.random.seed(1)  # The global state must not matter.
    first = listed(partition(LABELS, split(partitioner)))
    np.random.seed(2)
    assert listed(partition(LABELS, split(partitioner))) == first
    assert listed(partition(LABELS, split(partitioner, seed=4))) != first


@pytest.mark.parametrize("partitioner", list(Partitioner))
def test_indices_ascend(partitioner):
    for part in partition(LABELS, split(partitioner), OWNERS):
        assert (np.diff(part) > 0).all()


def test_iid_partitions_differ_by_one_example_at_most():
    sizes = [len(part) for part in partition(np.zeros(62, int), split(Partitioner.IID))]
    assert sorted(sizes) == [15, 15, 16, 16]


def test_without_division_each_partition_is_all_of_the_data():
    parts = partition(LABELS, split(Partitioner.NONE, num_partitions=100))
    assert len(parts) == 100
    assert listed(parts[:2]) == [list(range(60))] * 2


@PROFILE
@given(
    partitioner=st.sampled_from(DIVIDING),
    labels=st.lists(st.integers(0, 9), min_size=30, max_size=200),
    count=st.integers(1, 10),
    alpha=st.floats(0.2, 100),
    per_client=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_whatever_is_divided_each_example_is_in_one_partition_and_the_same_one_again(
    partitioner, labels, count, alpha, per_client, seed
):
    how = replace(
        split(partitioner, num_partitions=count, seed=seed),
        alpha=alpha,
        shards_per_client=per_client,
    )
    try:
        parts = partition(np.array(labels), how)
    except InputError:
        assume(False)
    assert len(parts) == count
    assert all(len(part) for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    assert listed(partition(np.array(labels), how)) == listed(parts)


@PROFILE
@given(owners=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=100), seed=st.integers(0))
def test_a_natural_partition_is_all_of_one_owner_and_the_largest_owners_come_first(owners, seed):
    names = sorted(set(owners), key=lambda name: (-owners.count(name), name))
    for count in range(1, len(names) + 1):
        how = split(Partitioner.NATURAL, num_partitions=count, seed=seed)
        parts = partition(np.zeros(len(owners), int), how, owners)
        assert listed(parts) == [
            [i for i, owner in enumerate(owners) if owner == name] for name in names[:count]
        ]


def test_quantities_differ_and_classes_do_not():
    labels = np.arange(20_000) % 10
    parts = partition(labels, split(Partitioner.QUANTITY, num_partitions=10, alpha=1.0))
    sizes = [len(part) for part in parts]
    assert max(sizes) > 4 * min(sizes)
    for part in parts:
        assert np.bincount(labels[part], minlength=10) == pytest.approx(
            np.full(10, len(part) / 10), abs=5 * np.sqrt(len(part) / 10)
        )


def test_each_scheme_has_its_name_as_a_flag_and_on_the_wire():
    assert set(typing.get_args(Scheme)) == {partitioner.value for partitioner in Partitioner}
    names = {f"PARTITIONER_{name}" for name in Partitioner.__members__}
    assert names == {*pb.DataSplit.Partitioner.keys()} - {"PARTITIONER_UNSPECIFIED"}


@pytest.mark.parametrize("partitioner", list(Partitioner))
def test_only_schemes_by_class_want_one_class_an_example(partitioner):
    for shape in [(60,), (60, 1)]:
        check_targets(partitioner, shape, whole=True)
    for shape, whole, said in [((60, 80), True, "80 targets"), ((60, 1), False, "real numbers")]:
        if partitioner in {Partitioner.DIRICHLET, Partitioner.SHARDS}:
            message = f"^--partitioner: {partitioner.value} divides by class, .* {said}"
            with pytest.raises(InputError, match=message):
                check_targets(partitioner, shape, whole=whole)
        else:
            check_targets(partitioner, shape, whole=whole)


def largest_share_of_a_class(alpha):
    labels = np.arange(2000) % 10
    parts = partition(labels, split(Partitioner.DIRICHLET, alpha=alpha, num_partitions=5))
    return np.mean([np.bincount(labels[part]).max() / len(part) for part in parts])


def test_a_smaller_alpha_is_more_skewed():
    shares = [largest_share_of_a_class(alpha) for alpha in (0.1, 1.0, 100.0)]
    assert shares[0] > shares[1] > shares[2]
    assert shares[2] < 0.15


@pytest.mark.parametrize("per_client", [1, 2, 3])
def test_a_client_of_k_shards_holds_k_classes_and_one_more_for_each_shard_at_a_border(per_client):
    labels = np.random.default_rng(0).integers(0, 10, 1000)
    shards = split(Partitioner.SHARDS, num_partitions=10, shards_per_client=per_client)
    counts = [len(np.unique(labels[part])) for part in partition(labels, shards)]
    assert max(counts) <= 2 * per_client


def test_equal_shards_of_equal_classes_hold_one_class_each():
    labels = np.arange(1000) % 10
    shards = split(Partitioner.SHARDS, num_partitions=10, shards_per_client=2)
    counts = [len(np.unique(labels[part])) for part in partition(labels, shards)]
    assert max(counts) <= 2
    assert sum(counts) > 10


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        (split(Partitioner.IID, num_partitions=61), "--num-partitions: 61 partitions"),
        (split(Partitioner.DIRICHLET, num_partitions=30, alpha=1e-3), "--alpha: 0.001"),
        (split(Partitioner.SHARDS, shards_per_client=16), "--shards-per-client: 64 shards"),
        (split(Partitioner.QUANTITY, num_partitions=30, alpha=1e-3), "--alpha: 0.001"),
        (
            split(Partitioner.NATURAL, num_partitions=5),
            "--num-partitions: 5 partitions, but the examples have 4 owners",
        ),
    ],
)
def test_what_leaves_a_partition_empty_is_refused_by_the_name_of_the_flag(wrong, flag):
    with pytest.raises(InputError, match=f"^{flag}"):
        partition(LABELS, wrong, OWNERS)


@pytest.mark.parametrize(
    ("size", "fraction", "held_out"), [(10, 0.2, 2), (9, 0.2, 1), (10, 0.0, 0), (1, 0.9, 0)]
)
def test_the_validation_part_is_the_fraction_rounded_down(size, fraction, held_out):
    indices = np.arange(100, 100 + size)
    training, validation = hold_out(indices, replace(SPLIT, validation_fraction=fraction), 0)
    assert (len(training), len(validation)) == (size - held_out, held_out)
    assert sorted([*training, *validation]) == indices.tolist()


def test_what_is_held_out_is_the_same_on_every_machine_and_in_every_version():
    training, validation = hold_out(np.arange(10), SPLIT, 1)
    again = hold_out(np.arange(10), SPLIT, 1)
    assert listed(again) == listed([training, validation])
    assert validation.tolist() == [2, 3]


def test_partitions_hold_out_by_a_draw_of_their_own():
    held_out = {tuple(hold_out(np.arange(100), SPLIT, index)[1]) for index in range(10)}
    assert len(held_out) == 10
