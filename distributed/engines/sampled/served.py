"""ID rows that a worker serves to others, and their gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ServedRows:
    """ID rows that this worker serves in a step.

    Attributes:
        places: int64 [n], among its own rows.
        rows: float32 [n, d], a leaf whose gradient is the sum over all workers' losses.
    """

    places: Tensor
    rows: Tensor


def summed_gradients(served: list[ServedRows]) -> tuple[Tensor, Tensor]:
    """Distinct places, and the sum of their rows' gradients over micro-batches."""
    if len(served) == 1:
        return served[0].places, served[0].rows.grad  # type: ignore[return-value]
    places, at = torch.unique(torch.cat([rows.places for rows in served]), return_inverse=True)
    grads = torch.cat([rows.rows.grad for rows in served])  # type: ignore[misc]
    return places, grads.new_zeros(places.numel(), grads.shape[1]).index_add_(0, at.to(grads.device), grads)
