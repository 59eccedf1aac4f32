"""Splits per user, where the source has none."""

import numpy as np
from promptmm.graph_store.catalog import SPLITS
from promptmm.graph_store.config import SourceConfig
from promptmm.graph_store.splits import split_labels


def split_by_label(users, items, config):
    labels = split_labels(users, items, config, np.random.default_rng(config.seed))
    return {name: (users[labels == label], items[labels == label]) for label, name in enumerate(SPLITS) if (labels == label).any()}


def test_random_split_is_80_10_10_a_user_and_independent_of_the_row_order():
    rng = np.random.default_rng(0)
    users, items = np.repeat(np.arange(50), 20), np.concatenate([rng.permutation(100)[:20] for _ in range(50)])
    splits = split_by_label(users, items, SourceConfig(seed=3))
    assert [np.unique(np.bincount(splits[s][0])).tolist() for s in ("train", "validation", "test")] == [[16], [2], [2]]
    order = rng.permutation(len(users))
    again = split_by_label(users[order], items[order], SourceConfig(seed=3))
    other = split_by_label(users, items, SourceConfig(seed=4))
    assert all(set(zip(*splits[s])) == set(zip(*again[s])) for s in splits)
    assert any(set(zip(*splits[s])) != set(zip(*other[s])) for s in splits)


def test_users_with_few_interactions_stay_in_train():
    splits = split_by_label(np.array([0, 0, 0, 2]), np.array([0, 1, 2, 0]), SourceConfig())
    assert set(splits) == {"train"}
    skewed = SourceConfig(train_ratio=0.1, validation_ratio=0.45)
    assert set(split_by_label(np.array([0, 0]), np.array([0, 1]), skewed)) == {"train", "validation"}
