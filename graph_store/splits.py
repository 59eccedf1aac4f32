"""Splits interactions per user where the source does not."""

import numpy as np

from .catalog import pair_keys
from .config import SourceConfig


def split_labels(
    users: np.ndarray, items: np.ndarray, config: SourceConfig, rng: np.random.Generator, timestamps: np.ndarray | None = None
) -> np.ndarray:
    """Splits every user's interactions into train (0), validation (1) and test (2).

    A user's shares are rounded to whole interactions and train keeps at least one: at 80/10/10, a user of fewer than
    five is all train. Repeats of a pair stay together, at the time of the first. The order of the rows does not matter. Runs of users,
    ascending, may be split one after the other with the same generator: the labels are those of all users at once.

    Args:
        users, items: Dense indices, integers [n]; all rows of the users among them.
        config: `train_ratio` and `validation_ratio`.
        rng: Of the random split.
        timestamps: [n] numbers, to hold out a user's latest; None holds out at random.

    Returns:
        int8 [n].
    """
    keys, first, inverse = _distinct(users, items, timestamps)
    order_in_user = rng.random(len(keys)) if timestamps is None else timestamps[first]
    pair_users = users[first] - users.min()
    order = np.lexsort((keys, order_in_user, pair_users))
    counts = np.bincount(pair_users)
    rank = np.arange(len(keys)) - np.repeat(np.cumsum(counts) - counts, counts)  # of each pair among its user's, in `order`
    num_train, num_validation = _shares(counts, config)
    user = pair_users[order]
    labels = np.empty(len(keys), np.int8)
    labels[order] = (rank >= num_train[user]).astype(np.int8) + (rank >= (num_train + num_validation)[user])
    return labels[inverse]


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
