"""The server optimizers, against torch's own."""

import math

import pytest
import torch

from common.algorithms.optimizers import Adagrad, Adam, Momentum, Options, Yogi

STEPS = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def adaptive(kind, beta1=0.9, beta2=0.99, tau=1e-3, rate=0.1):
    more = {} if kind is Adagrad else {"server_beta2": beta2}
    return kind(server_lr=rate, server_momentum=beta1, server_tau=tau, **more)


def walked(optimizer, state=None):
    """Return the model after each of STEPS, from ones."""
    model, state, found = torch.ones(4, dtype=torch.float64), state or {}, []
    for step in STEPS:
        model, state = optimizer.apply(model, step, state)
        assert set(state) == set(optimizer.state_names)
        found.append(model)
    return torch.stack(found)


def torchs(make, before_step=lambda optimizer, number: None):
    """Return the same of one of torch's optimizers, with minus the step as gradient."""
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    reference, found = make([weight]), []
    for number, step in enumerate(STEPS, 1):
        weight.grad = -step
        before_step(reference, number)
        reference.step()
        found.append(weight.detach().clone())
    return torch.stack(found)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_rate_1_without_momentum_adds_the_mean_update():
    model, step = torch.tensor([1.0, 2.0]), double(0.5, -1.0)
    assert Options().apply(model, step, {})[0].tolist() == [1.5, 1.0]


@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_fedavgm_is_torchs_sgd_with_momentum(rate, momentum):
    expected = torchs(lambda weights: torch.optim.SGD(weights, lr=rate, momentum=momentum))
    assert_same(walked(Momentum(server_lr=rate, server_momentum=momentum)), expected)


def test_fedadagrad_without_momentum_is_torchs_adagrad():
    tau = 0.01
    expected = torchs(
        lambda weights: torch.optim.Adagrad(
            weights, lr=0.1, initial_accumulator_value=tau**2, eps=tau
        )
    )
    assert_same(walked(adaptive(Adagrad, beta1=0.0, tau=tau)), expected)


def test_fedadam_is_torchs_adam_without_its_bias_correction():
    tau, beta1, beta2 = 0.01, 0.9, 0.99

    def uncorrect(optimizer, number):
        root = math.sqrt(1 - beta2**number)
        for group in optimizer.param_groups:
            group.update(lr=0.1 * (1 - beta1**number) / root, eps=tau / root)

    expected = torchs(lambda weights: torch.optim.Adam(weights, betas=(beta1, beta2)), uncorrect)
    # Torch's second moment begins at 0.
    zero = {"second_moment": torch.zeros(4, dtype=torch.float64)}
    assert_same(walked(adaptive(Adam, beta1, beta2, tau), zero), expected)


@pytest.mark.parametrize(
    ("kind", "second_moment"),
    [
        (Adagrad, 0.25 + 4.0),
        (Adam, 0.5 * 0.25 + 0.5 * 4.0),
        (Yogi, 0.25 + 0.5 * 4.0),  # 4 is more than 0.25: it grows by (1 - beta2) * 4.
    ],
)
def test_a_first_step_by_hand(kind, second_moment):
    optimizer = adaptive(kind, beta1=0.5, beta2=0.5, tau=0.5)
    model, state = optimizer.apply(torch.tensor([3.0]), double(2.0), {})
    assert state["second_moment"].item() == second_moment
    assert state["momentum"].item() == 1.0
    assert model.item() == pytest.approx(3 + 0.1 * 1.0 / (math.sqrt(second_moment) + 0.5))


def test_yogis_second_moment_shrinks_by_what_a_small_step_allows():
    state = {"momentum": double(0.0), "second_moment": double(1.0)}
    after = adaptive(Yogi, beta2=0.9).apply(torch.tensor([0.0]), double(0.5), state)[1]
    assert after["second_moment"].item() == pytest.approx(1.0 - 0.1 * 0.25)


def test_a_model_of_low_precision_takes_its_step_in_float64():
    model = torch.tensor([1.0], dtype=torch.bfloat16)
    moved, _ = Options().apply(model, double(1e-9), {})
    assert moved.dtype is torch.float64
    assert moved.item() == 1 + 1e-9


@pytest.mark.parametrize(
    "optimizer", [Momentum(server_lr=0.5, server_momentum=0.9), adaptive(Yogi)]
)
def test_arguments_stay_as_they_are(optimizer):
    model, step = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    state = {name: torch.ones(2, dtype=torch.float64) for name in optimizer.state_names}
    optimizer.apply(model, step, state)
    assert [t.tolist() for t in (model, step, *state.values())] == [[1.0, 1.0]] * (2 + len(state))
