"""The weighted mean of the updates."""

import sys
from random import Random

import pytest
import torch

from common.algorithms.weighting import weighted_mean
from server.aggregation.weighting import capped_weights, outliers


def test_clients_count_by_their_examples():
    updates = [torch.tensor([1.0, 2.0]), torch.tensor([10.0, -1.0]), torch.tensor([0.5, 4.0])]
    # (1*1 + 10*10 + 100*0.5) / 111 and (1*2 - 10*1 + 100*4) / 111
    assert weighted_mean(updates, [1, 10, 100]).tolist() == [151 / 111, 392 / 111]


def test_a_single_update_is_its_own_mean():
    assert weighted_mean([torch.tensor([0.1, -7.0])], [13]).tolist() == pytest.approx(
        torch.tensor([0.1, -7.0]).tolist()
    )


def test_the_sum_runs_in_float64():
    updates = [torch.tensor([2.0**24]), torch.tensor([1.0])]  # Their sum is no float32.
    mean = weighted_mean(updates, [1, 1])
    assert mean.dtype is torch.float64
    assert mean.item() == (2**24 + 1) / 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_values_that_are_no_float32_are_kept(dtype):
    updates = [torch.tensor([2**24 + 1], dtype=dtype)] * 2
    assert weighted_mean(updates, [1, 100]).item() == 2**24 + 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_updates_may_have_any_dtype(dtype):
    updates = [torch.tensor([1, 8], dtype=dtype), torch.tensor([4, -1], dtype=dtype)]
    assert weighted_mean(updates, [1, 2]).tolist() == [3.0, 2.0]


def test_the_updates_stay_as_they_are():
    update = torch.tensor([1.0, 2.0], dtype=torch.float64)
    weighted_mean([update, update], [1, 2])
    assert update.tolist() == [1.0, 2.0]


def test_each_update_needs_its_number_of_examples():
    with pytest.raises(ValueError, match="shorter"):
        weighted_mean([torch.ones(1), torch.ones(1)], [1])


@pytest.mark.parametrize(
    ("counts", "share", "weights"),
    [
        ([3, 1, 2], 1.0, [3, 1, 2]),
        ([3, 1, 2], 0.5, [3, 1, 2]),  # Exactly half is allowed.
        ([1, 8, 1], 0.5, [1, 2, 1]),
        ([10, 100, 1000, 10], 0.4, [10, 40, 40, 10]),
        ([2**40, 1, 1], 0.1, [1, 1, 1]),  # Equal shares are larger, too.
        ([5, 50], 0.5, [5, 5]),
        ([7], 0.01, [1]),
    ],
)
def test_no_update_weighs_more_than_its_share(counts, share, weights):
    found = capped_weights(counts, share)
    assert found == pytest.approx(weights)
    assert max(found) <= max(share, 1 / len(counts)) * sum(found) * (1 + 1e-12)


def test_without_a_cap_the_weights_are_the_counts_exactly():
    counts = [2**53 - 1, 1, 12345]
    assert capped_weights(counts, 1.0) == counts


@pytest.mark.parametrize(
    ("norms", "left_out", "median"),
    [
        ([1.0, 2.0, 3e9], [2], 2.0),
        ([5.0, 5.0, 5.0, 5.0], [], 5.0),
        ([5.0, 5.0, 50.0], [], 5.0),  # Exactly as much as is allowed.
        ([5.0, 5.0, 50.1], [2], 5.0),
        ([3e9, 1.0], [], 3e9),  # Nobody knows which of two is right.
        ([1e-6, 1e-6, 1.0, 1.0], [], 1.0),  # Short ones leave out none unless they are more.
        ([1.0, 3e9, 3e9], [], 3e9),
        ([0.0, 0.0, 1.0], [], 1.0),
        ([0.0, 0.0, 0.0, 1.0, 1.0, 3e9], [5], 1.0),
        ([0.0, 0.0], [], 0.0),
        ([3e9], [], 3e9),
        ([sys.float_info.max, 1.0, 1.0, 1.0], [0], 1.0),
        ([sys.float_info.max] * 3, [], sys.float_info.max),
    ],
)
def test_an_update_that_is_far_longer_than_the_median_is_left_out(norms, left_out, median):
    by_client = {str(number): norm for number, norm in enumerate(norms)}
    found = (frozenset(map(str, left_out)), median)
    assert outliers(by_client, 10.0) == found
    backwards = dict(reversed(by_client.items()))
    assert outliers(backwards, 10.0) == found
    assert not outliers(by_client, 0.0).clients


@pytest.mark.parametrize("seed", range(20))
def test_more_than_half_of_the_updates_stay(seed):
    random = Random(seed)
    count = random.randint(1, 9)
    norms = {str(n): random.choice([0.0, 10 ** random.uniform(-9, 9)]) for n in range(count)}
    assert 2 * len(outliers(norms, 1.0).clients) < count
