"""Seeded draws for the fit of a map of new items: functions of a seed and an index, not of order."""

import torch
from torch import Tensor

from ..random import random_bits

# The first key of each independent stream.
STREAM_FITTED, STREAM_FOLDS, STREAM_USERS, STREAM_ITEMS, STREAM_CALIBRATION = (0xF01D + number for number in range(5))


def order_by_draw(stream: int, seed: int, rows: Tensor) -> Tensor:
    """Returns `rows`, int64 [n], in the order of a draw for each of them."""
    return rows[torch.argsort(random_bits(stream, seed, rows), stable=True)]
