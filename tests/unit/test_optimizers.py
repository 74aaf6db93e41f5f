"""The server optimizer, against torch's own SGD."""

import pytest
import torch

from server.optimizers import Sgd


def test_rate_1_without_momentum_adds_the_mean_update():
    model, step = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0], dtype=torch.float64)
    assert Sgd().apply(model, step, None)[0].tolist() == [1.5, 1.0]


@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_steps_are_those_of_torch_with_minus_the_mean_update_as_gradient(rate, momentum):
    steps = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    reference = torch.optim.SGD([weight], lr=rate, momentum=momentum)
    optimizer, model, velocity = Sgd(rate, momentum), torch.ones(4, dtype=torch.float64), None
    for step in steps:
        weight.grad = -step
        reference.step()
        model, velocity = optimizer.apply(model, step, velocity)
        torch.testing.assert_close(model, weight.detach(), rtol=1e-14, atol=1e-14)


def test_a_model_of_low_precision_takes_its_step_in_float64():
    model = torch.tensor([1.0], dtype=torch.bfloat16)
    moved, velocity = Sgd().apply(model, torch.tensor([1e-9], dtype=torch.float64), None)
    assert moved.dtype is velocity.dtype is torch.float64
    assert moved.item() == 1 + 1e-9


def test_arguments_stay_as_they_are():
    model, step, velocity = (torch.ones(2, dtype=torch.float64) for _ in range(3))
    Sgd(0.5, 0.9).apply(model, step, velocity)
    assert [t.tolist() for t in (model, step, velocity)] == [[1.0, 1.0]] * 3
