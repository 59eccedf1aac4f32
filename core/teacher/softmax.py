"""Trains a teacher's vectors by a softmax over items, in place of BPR (docs/method.md 1.6)."""

import torch
from torch import Tensor

from ..config import TeacherConfig
from ..losses import softmax_loss
from ..random import random_below
from ..rows import rownorm
from ..sampling import STREAM_COMPARED
from .triples import Triples


def compared_items(config: TeacherConfig, num_items: int, seed: int, step: int) -> Tensor | None:
    """Returns the items that all positives of a step are compared with, int64 [n] ascending; None where the teacher's loss compares none.

    An item that is drawn twice is compared once. Every process draws the same items, so neither the number of workers nor that of
    micro-batches changes them. A catalog that has no more than `teacher.softmax_items` items is taken as a whole, and the softmax is then
    exact.

    Args:
        config: The teacher's settings.
        num_items: Number of items in the catalog.
        seed: `run.seed`.
        step: Number of the step since the start of training.
    """
    if config.loss != "softmax":
        return None
    if num_items <= config.softmax_items:
        return torch.arange(num_items)
    return random_below(num_items, STREAM_COMPARED, seed, step, torch.arange(config.softmax_items)).unique()


def softmax_term(users: Tensor, items: Tensor, batch: Triples, config: TeacherConfig) -> Tensor:
    """Computes the loss of `teacher.loss=softmax` on vectors of users and items: their cosines divided by τ_s are the scores.

    The scores of a user with the compared items are computed once for all of its examples, and hold those of the positives among them.

    Args:
        users, items: Vectors of all rows that the batch indexes, [n, d] and [m, d].
        batch: The examples with the items that they are compared with.
        config: The teacher's settings.
    """
    assert batch.compared is not None, "the task draws the items to compare with"
    distinct, places = batch.users.unique(return_inverse=True)
    queries = rownorm(users[distinct]) / config.temperature
    columns = batch.positives.new_full((items.shape[0],), -1)  # the place of each item among the compared ones
    columns[batch.compared] = torch.arange(batch.compared.numel(), device=columns.device)
    column = columns[batch.positives]
    further = (column < 0).nonzero()[:, 0]
    scores = queries @ rownorm(items[batch.compared]).T
    own = (queries[places[further]] * rownorm(items[batch.positives[further]])).sum(1)
    return softmax_loss(scores, places, column, own, batch.num_examples, batch.weights)
