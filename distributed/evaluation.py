"""Sharded exact evaluation of finished vectors: Ray tasks rank a share of the users each, and their sums add up."""

import numpy as np
import ray
import torch
from torch import Tensor

from ..core.config import EvaluationConfig
from ..core.graph import Csr
from ..core.ranking import RankingMetrics, merge_rows, rank_users
from ..graph_store.dataset import Dataset, open_dataset


def masks(dataset: Dataset, split: str) -> tuple[Csr, Csr]:
    """The held-out items of a split and the items masked out: train when validating, train and validation when testing."""
    train = dataset.csr("train")
    if split == "test" and dataset.has_split("validation"):
        train = merge_rows(train, dataset.csr("validation"))
    return dataset.csr(split), train


@ray.remote(num_cpus=1)
def _evaluate_share(
    dataset_url: str, cache_dir: str | None, users: np.ndarray, items: np.ndarray, split: str, config: EvaluationConfig,
    rank: int, world_size: int, threads: int,
) -> list[np.ndarray]:  # fmt: skip
    torch.set_num_threads(threads)
    held_out, exclude = masks(open_dataset(dataset_url, cache_dir), split)
    vectors = (torch.from_numpy(users.copy()), torch.from_numpy(items.copy()))
    metrics = rank_users(*vectors, held_out, exclude, config.cutoffs, config.memory_mib, rank, world_size)
    return [state.numpy() for state in metrics.states()]


def evaluate_vectors(
    dataset_url: str,
    cache_dir: str | None,
    users: Tensor,
    items: Tensor,
    split: str,
    config: EvaluationConfig,
    num_shards: int,
    threads: int,
) -> dict[str, float]:
    """Full-ranking metrics of a split.

    Args:
        users, items: Final vectors, float32, on the CPU.
        split: "validation" or "test".
        num_shards: Tasks, each with its share of the users.
        threads: torch threads of a task.
    """
    user_ref, item_ref = ray.put(users.numpy()), ray.put(items.numpy())
    tasks = [
        _evaluate_share.remote(dataset_url, cache_dir, user_ref, item_ref, split, config, rank, num_shards, threads)
        for rank in range(num_shards)
    ]
    metrics = RankingMetrics(config.cutoffs, items.shape[0])
    for states in ray.get(tasks):
        for total, part in zip(metrics.states(), states):
            total += torch.from_numpy(part.copy())
    return metrics.compute()
