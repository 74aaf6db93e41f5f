"""FedAvg, and what holds for every strategy."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.algorithms.fedavg import FedAvg
from common.algorithms.fednova import FedNova
from common.algorithms.median import Median
from common.algorithms.multi_krum import MultiKrum, krum_scores
from common.algorithms.norm_bounding import NormBounding
from common.algorithms.scaffold import Scaffold
from common.algorithms.trimmed_mean import TrimmedMean
from tests.unit.algorithms.rounds import counted, made, one_round

ALL = {
    "fedavg": made(FedAvg),
    "fednova": made(FedNova, lr=0.1, momentum=0.0, proximal_mu=0.0),
    "scaffold": made(Scaffold, lr=0.1, num_clients=10),
    "median": made(Median),
    "trimmed-mean": made(TrimmedMean, trim_fraction=0.2),
    "multi-krum": made(MultiKrum, num_hostile=None),
    "norm-bounding": made(NormBounding, norm_bound=1e9),
}
NUMBERS = st.floats(-100, 100, width=32)


@st.composite
def cohorts(draw):
    """Return updates of one size, with their examples and local steps."""
    size, count = draw(st.integers(1, 5)), draw(st.integers(3, 9))
    rows = st.lists(NUMBERS, min_size=size, max_size=size)
    updates = draw(st.lists(rows, min_size=count, max_size=count))
    numbers = st.lists(st.integers(1, 50), min_size=count, max_size=count)
    weights, steps = draw(numbers), draw(numbers)
    cohort = [counted(float(n), k) for n, k in zip(weights, steps, strict=True)]
    return [torch.tensor(update) for update in updates], cohort


def test_clients_count_by_their_examples():
    updates = [torch.tensor([111.0]), torch.tensor([22.2]), torch.tensor([1.11])]
    cohort = [counted(1.0, 1), counted(10.0, 1), counted(100.0, 1)]
    # 1 + (1*111 + 10*22.2 + 100*1.11) / 111
    assert one_round(made(FedAvg), updates, cohort, torch.ones(1)).item() == pytest.approx(5.0)


def test_the_server_rate_scales_the_step():
    updates, cohort = [torch.tensor([4.0])], [counted(3.0, 1)]
    assert one_round(made(FedAvg, server_lr=0.25), updates, cohort, torch.ones(1)).item() == 2.0


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=40, deadline=None)
@given(cohorts(), st.randoms(use_true_random=False))
def test_the_order_of_the_clients_changes_nothing(name, drawn, random):
    updates, cohort = drawn
    order = list(range(len(updates)))
    random.shuffle(order)
    strategy = ALL[name]
    found = one_round(strategy, updates, cohort)
    shuffled = one_round(strategy, [updates[i] for i in order], [cohort[i] for i in order])
    if name == "multi-krum":
        # Equal scores are told apart by the order: then the chosen ones may be others.
        scores = {round(score, 3) for score in scores_of(strategy, updates)}
        assume(len(scores) == len(updates))
    torch.testing.assert_close(found, shuffled, rtol=1e-9, atol=1e-9)


def scores_of(strategy, updates):
    return krum_scores(strategy.measure(updates), max(0, (len(updates) - 3) // 2))


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=30, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=4), cohorts(), st.integers(1, 9))
def test_identical_updates_give_back_that_update(name, values, drawn, steps):
    _, cohort = drawn
    # FedNova's too, as all clients take the same steps.
    equal = [counted(one.weight, steps) for one in cohort]
    update = torch.tensor(values)
    found = one_round(ALL[name], [update] * len(equal), equal)
    torch.testing.assert_close(found, update.double(), rtol=1e-9, atol=1e-9)
