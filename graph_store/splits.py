"""Splits interactions per user where the source does not."""

import numpy as np

from ..core.errors import InputError
from .catalog import SPLITS, Pairs, pair_keys
from .config import SourceConfig


def split_interactions(
    users: np.ndarray, items: np.ndarray, config: SourceConfig, timestamps: np.ndarray | None = None
) -> dict[str, Pairs]:
    """Splits every user's interactions into train, validation and test; a split that gets none is absent.

    A user's shares are rounded to whole interactions and train keeps at least one: at 80/10/10, a user of fewer than
    five is all train. Repeats of a pair stay together, at the time of the first. The order of the rows does not matter.

    Args:
        users, items: Dense indices, [n] int64.
        config: `split`, `train_ratio`, `validation_ratio` and `seed`.
        timestamps: [n] numbers, for `split="time"`.

    Raises:
        InputError: `split="time"` without timestamps.
    """
    keys, first, inverse = _distinct(users, items, timestamps)
    if config.split == "random":
        order_in_user = np.random.default_rng(config.seed).random(len(keys))
    elif timestamps is None:
        raise InputError(
            "source.split=time: the source has no timestamps; name their column in source.timestamp_column or set source.split=random"
        )
    else:
        order_in_user = timestamps[first]
    pair_users = users[first]
    order = np.lexsort((keys, order_in_user, pair_users))
    counts = np.bincount(pair_users)
    rank = np.arange(len(keys)) - np.repeat(np.cumsum(counts) - counts, counts)  # of each pair among its user's, in `order`
    num_train, num_validation = _shares(counts, config)
    user = pair_users[order]
    labels = np.empty(len(keys), np.int64)
    labels[order] = (rank >= num_train[user]).astype(int) + (rank >= (num_train + num_validation)[user])
    by_row = labels[inverse]
    return {name: (users[by_row == label], items[by_row == label]) for label, name in enumerate(SPLITS) if (by_row == label).any()}


def _distinct(users: np.ndarray, items: np.ndarray, timestamps: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Distinct pairs' keys, the row of each pair's earliest occurrence, and each row's position among the distinct."""
    keys = pair_keys(users, items, int(items.max()) + 1)
    by_time = np.argsort(timestamps, kind="stable") if timestamps is not None else np.arange(len(keys))
    distinct, first, inverse = np.unique(keys[by_time], return_index=True, return_inverse=True)
    by_row = np.empty(len(keys), np.int64)
    by_row[by_time] = inverse
    return distinct, by_time[first], by_row


def _shares(counts: np.ndarray, config: SourceConfig) -> tuple[np.ndarray, np.ndarray]:
    """How many of each user's interactions train and validate."""
    test_ratio = max(0.0, 1 - config.train_ratio - config.validation_ratio)
    held_out = []
    left = np.maximum(counts - 1, 0)
    for ratio in (config.validation_ratio, test_ratio):
        share = np.minimum(np.floor(counts * ratio + 0.5 + 1e-9), left).astype(np.int64)
        held_out.append(share)
        left = left - share
    return counts - held_out[0] - held_out[1], held_out[0]
