"""Brings the scores of different models to one scale: each user's in units of their standard deviation over all items."""

from collections.abc import Iterable

import torch
from torch import Tensor


def score_deviation(users: Tensor, covariance: Tensor) -> Tensor:
    """Returns the standard deviation over all items of the scores of some users, float64 [n]; 0 for a user whose scores are all equal.

    Args:
        users: Vectors of the users, float [n, d].
        covariance: Covariance of the item vectors over all items, float64 [d, d].
    """
    rows = users.double()
    variance = ((rows @ covariance) * rows).sum(1).clamp(min=0)
    least = 1e-12 * rows.square().sum(1) * covariance.diagonal().max()  # less is a rounding error
    return torch.where(variance > least, variance.sqrt(), 0.0)


def moments_of(chunks: Iterable[Tensor], dim: int) -> tuple[Tensor, Tensor]:
    """Returns the mean, float64 [dim], and the covariance, float64 [dim, dim], of item vectors that come in chunks, float [n, dim] each."""
    gram, total, count = torch.zeros(dim, dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64), 0
    for chunk in chunks:
        rows = chunk.double()
        gram.addmm_(rows.T, rows)
        total += rows.sum(0)
        count += rows.shape[0]
    mean = total / count
    return mean, gram / count - mean[:, None] * mean
