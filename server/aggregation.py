"""Strategies: how the cohort's updates become one step, on one window of coordinates.

Pure: tensors in, tensors out. Knows nothing about files, clients or rounds.
"""

from collections.abc import Sequence

import torch


def weighted_mean(updates: Sequence[torch.Tensor], num_examples: Sequence[int]) -> torch.Tensor:
    """Return sum(n_k * update_k) / sum(n_k): FedAvg, McMahan et al. 2017, algorithm 1.

    The sum runs in the order given, in float64, so the same order gives the same bytes.

    Args:
        updates: at least one tensor of shape [window], of any one dtype.
        num_examples: n_k of each, at least 1.

    Returns:
        float64, shape [window].

    >>> weighted_mean([torch.tensor([1.0]), torch.tensor([4.0])], [1, 2]).item()
    3.0
    """
    first, *others = zip(updates, num_examples, strict=True)
    total = first[0].to(torch.float64, copy=True).mul_(float(first[1]))
    scratch = torch.empty_like(total)
    for update, count in others:
        total.add_(scratch.copy_(update), alpha=float(count))
    return total.div_(float(sum(num_examples)))
