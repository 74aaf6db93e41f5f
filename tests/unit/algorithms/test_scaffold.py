"""SCAFFOLD: the server's half by hand, and both halves together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.algorithms.fedavg import FedAvg
from common.algorithms.scaffold import Scaffold, correction, next_control
from tests.unit.algorithms.rounds import counted, full_round, made, one_round

LR, STEPS = 0.1, 5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), min_size=1, max_size=9))
def test_the_first_round_with_zero_control_variates_is_fedavgs(drawn):
    by = correction({}, {})
    targets = [(float(n % 7), float(steps)) for n, steps in drawn]
    updates = [local(torch.zeros(1), target, by)["w"] for target, _ in targets]
    plain = [local(torch.zeros(1), target, {})["w"] for target, _ in targets]
    cohort = [counted(float(n), steps) for n, steps in drawn]
    scaffold = one_round(made(Scaffold, lr=LR, num_clients=20), updates, cohort)
    assert torch.equal(scaffold, one_round(made(FedAvg), plain, cohort))


def test_the_control_variate_by_hand():
    updates, cohort = (
        [torch.tensor([1.0]), torch.tensor([-3.0])],
        [
            counted(1.0, 10),
            counted(3.0, 5),
        ],
    )
    state = {"control": torch.tensor([2.0], dtype=torch.float64)}
    _, after = full_round(made(Scaffold, lr=LR, num_clients=8), updates, cohort, state=state)
    # -c - update / (K * lr) is -2 - 1 and -2 + 6; their mean by examples, 2.25, by 2 of 8 clients.
    assert after["control"].item() == pytest.approx(2 + 2 / 8 * (-3 + 3 * 4) / 4)


def local(weight, target, corrected_by):
    """Take STEPS gradient steps on (w - target)^2 / 2; return the update."""
    start = weight.clone()
    for _ in range(STEPS):
        weight = weight - LR * ((weight - target) + corrected_by.get("w", 0.0))
    return {"w": (weight - start).float()}


def test_the_servers_variate_stays_the_mean_of_the_clients():
    """With everyone in every round, c is the mean of the c_i, and the optimum is reached."""
    targets, counts = [0.0, 4.0, 20.0], [1.0, 2.0, 5.0]
    strategy = made(Scaffold, lr=LR, num_clients=len(targets))
    model, state, own = torch.zeros(1, dtype=torch.float64), {}, [{}, {}, {}]
    for _ in range(80):
        control = {"w": state["control"].float()} if state else {}
        updates = []
        for index, target in enumerate(targets):
            by = correction(control, own[index])
            update = local(model, target, by)
            own[index] = next_control(by, update, STEPS, LR)
            updates.append(update["w"])
        cohort = [counted(n, STEPS) for n in counts]
        model, state = full_round(strategy, updates, cohort, model, state)
        mean = sum(n * c["w"].item() for n, c in zip(counts, own, strict=True)) / sum(counts)
        assert state["control"].item() == pytest.approx(mean, abs=1e-5)
    assert model.item() == pytest.approx((2 * 4 + 5 * 20) / 8, abs=1e-4)


def test_the_next_control_is_the_mean_gradient_before_correction():
    by = {"w": torch.tensor([0.7])}
    update = local(torch.zeros(1, dtype=torch.float64), 3.0, by)
    weights, mean = torch.zeros(1, dtype=torch.float64), 0.0
    for _ in range(STEPS):
        mean += (weights.item() - 3.0) / STEPS
        weights = weights - LR * (weights - 3.0 + 0.7)
    assert next_control(by, update, STEPS, LR)["w"].item() == pytest.approx(mean, rel=1e-5)
