"""Finds a step's distinct positives, over which the embedding loss is a mean, in a view of any engine."""

import torch
from torch import Tensor

from ..engines.view import View
from ..worker import Worker


def distinct_positives(worker: Worker, view: View, positives: Tensor) -> tuple[Tensor, Tensor, int]:
    """Returns this worker's share of the global batch's distinct positives; collective.

    Args:
        worker: This worker.
        view: What the worker's share of the step computes on.
        positives: int64 [batch], the share's positives as rows of the view.

    Returns:
        The share's dataset indices and its rows of the view, int64 [n] each, and the number of distinct positives of all workers.
    """
    if view.item_ids is None:
        unique, count = worker.share_of_distinct(positives)
        return unique, unique, count
    ids = view.item_ids
    unique, count = worker.share_of_distinct(ids[positives.to(ids.device)])
    return unique, torch.searchsorted(ids, unique).to(positives.device), count
