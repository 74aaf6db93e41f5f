"""FedNova: clients that take unequal numbers of local steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.algorithms.base import CannotAggregate
from common.algorithms.fedavg import FedAvg
from common.algorithms.fednova import FedNova, norm_of_steps
from tests.unit.algorithms.rounds import counted, made, one_round


def nova(momentum=0.0, mu=0.0):
    return made(FedNova, lr=0.1, momentum=momentum, proximal_mu=mu)


def test_each_update_counts_per_step_and_all_are_scaled_by_the_mean_steps():
    updates = [torch.tensor([2.0]), torch.tensor([12.0])]
    cohort = [counted(1.0, 2), counted(3.0, 4)]
    # p = 1/4 and 3/4; tau_eff = 2/4 + 12/4 = 3.5; 3.5 * (1/4 * 2/2 + 3/4 * 12/4)
    assert one_round(nova(), updates, cohort).item() == pytest.approx(3.5 * 2.5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(-9, 9)), min_size=1), st.integers(1, 99))
def test_with_equal_steps_it_is_fedavg_bit_for_bit(drawn, steps):
    updates = [torch.tensor([value]) for _, value in drawn]
    cohort = [counted(float(n), steps) for n, _ in drawn]
    fedavg = one_round(made(FedAvg), updates, cohort)
    assert torch.equal(one_round(nova(), updates, cohort), fedavg)


@pytest.mark.parametrize(("momentum", "mu"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.5), (0.9, 0.5)])
def test_the_norm_is_how_far_steps_on_a_slope_of_one_lead(momentum, mu):
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    sgd = torch.optim.SGD([weight], lr=0.1, momentum=momentum)
    for _ in range(5):
        sgd.zero_grad()
        (weight + mu / 2 * weight.square()).sum().backward()
        sgd.step()
    assert norm_of_steps(5, 0.1, momentum, mu) == pytest.approx(-weight.item() / 0.1)


def test_steps_that_are_claimed_by_the_billion_cost_nothing():
    assert norm_of_steps(10**12, 0.1, 0.9, 0.0) == pytest.approx(10**13)
    assert norm_of_steps(10**12, 0.1, 0.0, 0.5) == pytest.approx(1 / 0.05)


@pytest.mark.parametrize(("steps", "mu"), [(0, 0.0), (2, 20.0), (2, 30.0), (10**6, 1e9)])
def test_steps_that_add_up_to_nothing_are_no_round(steps, mu):
    with pytest.raises(CannotAggregate, match="local steps"):
        nova(mu=mu).plan([counted(1.0, steps)], None, {})


def test_statistics_count_by_examples_whatever_the_steps():
    """A running variance must stay between the clients': the steps would lead beyond them."""
    strategy, updates = nova(), [torch.tensor([2.0]), torch.tensor([12.0])]
    plan = strategy.plan([counted(1.0, 1), counted(3.0, 40)], None, {})
    assert strategy.mean(updates, plan).item() == (2 + 3 * 12) / 4
