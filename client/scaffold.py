"""SCAFFOLD's client: what its local steps are corrected by, and its next control variate.

Karimireddy et al. 2020 (arXiv 1910.06378), algorithm 1 with option II. Control variates are
tensors by name, float32 and of the model's shapes; the server's half is
server/aggregation/strategies/scaffold.py. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

Tensors = Mapping[str, torch.Tensor]


def correction(control: Tensors, own: Tensors) -> dict[str, torch.Tensor]:
    """Return c - c_i, which is added to each local gradient.

    Args:
        control: c, the server's; empty is all zeros.
        own: c_i, the client's; empty is all zeros.

    >>> correction({"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])})
    {'w': tensor([2.])}
    """
    names = dict.fromkeys([*control, *own])
    return {
        name: control.get(name, torch.zeros(())) - own.get(name, torch.zeros(())) for name in names
    }


def next_control(
    corrected_by: Tensors, update: Tensors, steps: int, learning_rate: float
) -> dict[str, torch.Tensor]:
    """Return the client's next c_i: c_i - c - update / (steps * learning_rate).

    That is the mean gradient of the local steps, before their correction.

    Args:
        corrected_by: what `correction` returned; empty is all zeros.
        update: local minus global, by name; floating-point tensors count.
        steps: the local steps taken, at least 1.
        learning_rate: of the local steps.

    >>> next_control({"w": torch.tensor([2.0])}, {"w": torch.tensor([-1.0])}, 2, 0.1)
    {'w': tensor([3.])}
    """
    scale = -1 / (steps * learning_rate)
    return {
        name: tensor.float() * scale - corrected_by.get(name, torch.zeros(()))
        for name, tensor in update.items()
        if tensor.is_floating_point()
    }
