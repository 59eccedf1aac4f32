"""Sharded exact evaluation of finished vectors: Ray tasks rank a share of the users each, and their sums add up."""

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor

from ...core.config import EvaluationConfig
from ...core.metrics import RankingMetrics
from ...core.ranking import rank_users
from ...graph_store.dataset import masks, open_dataset
from ..config import ClusterConfig
from .lines import start_progress, watching


@ray.remote(num_cpus=1)
def _evaluate_share(
    dataset_url: str, cache_dir: str | None, users: np.ndarray, items: np.ndarray, split: str, config: EvaluationConfig,
    rank: int, world_size: int, threads: int, lines: ActorHandle,
) -> list[np.ndarray]:  # fmt: skip
    lines.start.remote()
    torch.set_num_threads(threads)
    held_out, exclude = masks(open_dataset(dataset_url, cache_dir), split)
    vectors = (torch.from_numpy(users.copy()), torch.from_numpy(items.copy()))
    metrics = rank_users(*vectors, held_out, exclude, config.cutoffs, config.memory_mib, rank, world_size, config.metrics)
    return [state.numpy() for state in metrics.states()]


def evaluate_vectors(
    dataset_url: str,
    users: Tensor,
    items: Tensor,
    split: str,
    config: EvaluationConfig,
    cluster: ClusterConfig,
    lines: ActorHandle | None = None,
) -> dict[str, float]:
    """Full-ranking metrics of a split.

    Args:
        users, items: Final vectors, float32, on the CPU.
        split: "validation" or "test".
        cluster: As many tasks as it has workers, each with its share of the users.
        lines: The actor that carries lines to the driver; None: one of its own.

    Raises:
        RunError: the cluster had no room for a task within `cluster.start_timeout`.
    """
    user_ref, item_ref = ray.put(users.numpy()), ray.put(items.numpy())
    lines, num_shards = lines or start_progress(), cluster.num_workers
    with watching(lines, cluster.start_timeout, "an evaluation task of 1 CPU"):
        tasks = [
            _evaluate_share.remote(
                dataset_url, cluster.cache_dir, user_ref, item_ref, split, config, rank, num_shards, cluster.worker_threads, lines
            )
            for rank in range(num_shards)
        ]
        shares = ray.get(tasks)
    metrics = RankingMetrics(config.cutoffs, items.shape[0], config.metrics)
    for states in shares:
        for total, part in zip(metrics.states(), states):
            total += torch.from_numpy(part.copy())
    return metrics.compute()
