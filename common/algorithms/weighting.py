"""The weighted mean on one window of coordinates: what most algorithms share.

Pure: tensors in, tensors out. Knows nothing about files, clients or rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def weighted_mean(
    updates: Sequence[torch.Tensor], weights: Sequence[float], total: float | None = None
) -> torch.Tensor:
    """Return sum(w_k * update_k) / total: FedAvg, McMahan et al. 2017, algorithm 1.

    The sum runs in the order given, in float64, so the same order gives the same bytes.

    Args:
        updates: at least one tensor of shape [window], of any one dtype.
        weights: of each; for FedAvg n_k, the examples that it was trained on.
        total: the weights' sum if not given.

    Returns:
        float64, shape [window].

    >>> import torch
    >>> weighted_mean([torch.tensor([1.0]), torch.tensor([4.0])], [1, 2]).item()
    3.0
    """
    import torch

    first, *others = zip(updates, weights, strict=True)
    mean = first[0].to(torch.float64, copy=True).mul_(first[1])
    scratch = torch.empty_like(mean)
    for update, weight in others:
        mean.add_(scratch.copy_(update), alpha=weight)
    return mean.div_(sum(weights) if total is None else total)
