"""Holds the ID rows that a worker serves to all workers in a step, and sums their gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ServedRows:
    """Holds the ID rows that this worker serves to all workers, itself included, for one micro-batch.

    Attributes:
        places: int64 [n], places among this worker's own rows.
        rows: float32 [n, d], a leaf of the graph of gradients where the rows are learnt; its gradient is the sum of those of all workers'
            losses.
    """

    places: Tensor
    rows: Tensor


def summed_gradients(served: list[ServedRows]) -> tuple[Tensor, Tensor]:
    """Returns the distinct places, int64 [n], and the sums of their rows' gradients over micro-batches, float32 [n, d]."""
    if len(served) == 1:
        return served[0].places, served[0].rows.grad  # type: ignore[return-value]
    places, at = torch.unique(torch.cat([rows.places for rows in served]), return_inverse=True)
    grads = torch.cat([rows.rows.grad for rows in served])  # type: ignore[misc]
    return places, grads.new_zeros(places.numel(), grads.shape[1]).index_add_(0, at.to(grads.device), grads)
