"""Median, trimmed mean, Multi-Krum and norm bounding: by hand, and under attack."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.algorithms.base import CannotAggregate
from common.algorithms.median import Median
from common.algorithms.multi_krum import MultiKrum, krum_scores
from common.algorithms.norm_bounding import NormBounding
from common.algorithms.order_statistics import network, ranks
from common.algorithms.trimmed_mean import TrimmedMean
from tests.unit.algorithms.rounds import counted, made, one_round


def tensors(*rows, dtype=torch.float32):
    return [torch.tensor(row, dtype=dtype) for row in rows]


def alike(count):
    return [counted(1.0, 1)] * count


def uneven(count):
    return [counted(float(1 + 99 * index), 1) for index in range(count)]


@pytest.mark.parametrize("count", range(1, 34))
def test_the_network_sorts_every_row_of_zeros_and_ones(count):
    """Which is enough for all rows: Knuth's zero-one principle, on as many as are feasible."""
    rng = np.random.default_rng(count)
    rows = rng.integers(0, 2, (count, 4096)).astype(np.float32)
    rows = np.sort(rows, 0)[rng.permutation(count)] if count > 12 else rows
    found = list(ranks([torch.from_numpy(row) for row in rows], range(count)))
    assert np.array_equal(np.concatenate([np.stack(part) for part in found], 1), np.sort(rows, 0))


def test_a_few_ranks_need_fewer_comparators():
    assert len(network(20, (9, 10))) < len(network(20, tuple(range(20))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_values_of_any_dtype_are_ranked_exactly(dtype):
    rows = tensors([5, 2**10], [1, 2**10 + 8], [3, 0], dtype=dtype)
    assert one_round(made(Median), rows, alike(3)).tolist() == [3.0, 2.0**10]
    big = tensors([2**53 - 1], [2**53 - 3], [0], dtype=torch.int64)
    assert made(Median).combine(big, made(Median).plan(alike(3), None, {})).item() == 2**53 - 3


def test_updates_of_several_parts_are_whole():
    rows = torch.randn(5, 100_000, generator=torch.Generator().manual_seed(0))
    found = one_round(made(Median), list(rows), alike(5))
    assert torch.equal(found, rows.median(0).values.double())


def test_the_median_of_an_even_number_is_between_the_two_in_the_middle():
    rows = tensors([1.0, 9.0], [2.0, 7.0], [4.0, 8.0], [100.0, -5.0])
    assert one_round(made(Median), rows, uneven(4)).tolist() == [3.0, 7.5]


@pytest.mark.parametrize(
    ("fraction", "mean"),
    [(0.0, 22.0), (0.19, 22.0), (0.2, 3.0), (0.4, 3.0), (0.39, 3.0)],
)
def test_the_trimmed_mean_leaves_out_whole_updates_at_both_ends(fraction, mean):
    rows = tensors([1.0], [2.0], [3.0], [4.0], [100.0])
    assert one_round(made(TrimmedMean, trim_fraction=fraction), rows, uneven(5)).item() == mean


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12))
def test_with_nothing_trimmed_it_is_the_mean(values):
    rows = [torch.tensor([value]) for value in values]
    found = one_round(made(TrimmedMean, trim_fraction=0.0), rows, alike(len(rows)))
    assert found.item() == pytest.approx(np.mean(values, dtype=np.float64), abs=1e-9)


def test_krum_scores_by_hand():
    points = torch.tensor([[0.0], [1.0], [3.0], [10.0]], dtype=torch.float64)
    # n = 4, f = 1: the nearest one counts.
    assert krum_scores(points @ points.T, 1) == [1.0, 1.0, 4.0, 49.0]
    # f = 0: the nearest two.
    assert krum_scores(points @ points.T, 0) == [10.0, 5.0, 13.0, 130.0]


def test_products_that_overflow_make_no_update_a_neighbour():
    rows = tensors([0.0], [1.0], [2.0], [1e308], [-1e308], dtype=torch.float64)
    strategy = made(MultiKrum, num_hostile=1)
    shares = strategy.plan(alike(5), strategy.measure(rows), {}).shares
    assert shares[:3] == [0.25] * 3


def test_multi_krum_is_the_mean_of_those_that_are_close():
    rows = tensors([0.0, 1.0], [1.0, 1.0], [0.5, 4.0], [0.0, 0.0], [1e6, 1e6])
    strategy = made(MultiKrum, num_hostile=1)
    assert strategy.plan(alike(5), strategy.measure(rows), {}).shares == [0.25] * 4 + [0.0]
    assert one_round(strategy, rows, uneven(5)).tolist() == [0.375, 1.5]


@pytest.mark.parametrize(("count", "hostile"), [(4, 1), (2, None), (6, 2)])
def test_multi_krum_needs_3_updates_and_2_more_for_each_hostile_one(count, hostile):
    strategy = made(MultiKrum, num_hostile=hostile)
    with pytest.raises(CannotAggregate, match=r"needs \d updates, not"):
        strategy.plan(alike(count), torch.zeros(count, count, dtype=torch.float64), {})


def test_longer_updates_are_scaled_down_to_the_bound():
    rows = tensors([3.0, 4.0], [0.3, 0.4], [0.0, 0.0])
    strategy = made(NormBounding, norm_bound=1.0)
    # (1 * (0.6, 0.8) + 3 * (0.3, 0.4)) / (1 + 3 + 4)
    cohort = [counted(1.0, 1), counted(3.0, 1), counted(4.0, 1)]
    found = one_round(strategy, rows, cohort)
    assert found.tolist() == pytest.approx([1.5 / 8, 2.0 / 8], rel=1e-6)


@pytest.mark.parametrize(
    "strategy",
    [made(Median), made(TrimmedMean, trim_fraction=0.3), made(MultiKrum, num_hostile=2)],
    ids=type,
)
def test_two_of_ten_that_are_hostile_do_not_lead_out_of_the_others(strategy):
    generator = torch.Generator().manual_seed(0)
    honest = list(torch.randn(8, 50, generator=generator))
    hostile = [-1000.0 * honest[0], torch.full((50,), 3e38)]
    found = one_round(strategy, [hostile[0], *honest, hostile[1]], uneven(10))
    rows = torch.stack(honest)
    assert (found >= rows.min(0).values).all()
    assert (found <= rows.max(0).values).all()
