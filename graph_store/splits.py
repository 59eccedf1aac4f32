"""Splits interactions per user where the source does not, or not as far as a run needs."""

from dataclasses import dataclass

import numpy as np

from .catalog import pair_keys
from .config import SourceConfig

TRAIN = 0  # a label: the position in `catalog.SPLITS`


@dataclass(frozen=True)
class HoldOut:
    """Says what is held out beside the splits that the source has; the settings of `SourceConfig` with the same names.

    Attributes:
        cold_items: Share of the items that are held out whole, with their interactions in the split `cold`; 0: there is no such split.
        validation_from_train: Share of every user's train interactions that validates; 0: none.
        seed: Of the draws.
    """

    cold_items: float = 0.0
    validation_from_train: float = 0.0
    seed: int = 0

    @staticmethod
    def of(config: SourceConfig) -> "HoldOut":
        """Returns what a source's settings say."""
        return HoldOut(config.cold_items, config.validation_from_train, config.seed)

    def changed(self, records: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Moves some of the users' train interactions to validation; the others stay where they are.

        Args:
            records: Users and items, structured [n]; all rows of the users among them.
            labels: Integers [n], the positions of the rows' splits in `catalog.SPLITS`, or beyond.
            rng: Of the draw. Runs of users, ascending, may come one after the other with the same generator.

        Returns:
            The labels, [n].
        """
        train = labels == TRAIN
        if not self.validation_from_train or not train.any():
            return labels
        shares = SourceConfig(train_ratio=1 - self.validation_from_train, validation_ratio=self.validation_from_train)
        labels = labels.copy()
        labels[train] = split_labels(records["user"][train], records["item"][train], shares, rng)
        return labels


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
