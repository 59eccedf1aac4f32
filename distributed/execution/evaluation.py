"""Sharded exact evaluation of finished vectors: each process ranks a share of the users, and the sums add up."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import ray
import torch
from ray.actor import ActorHandle

from ...core.histories import Histories
from ...core.metrics import RankingMetrics
from ...core.ranking import rank_users
from ...graph_store.dataset import masks, open_dataset
from ..config import ClusterConfig
from ..messages import EvaluationJob
from .lines import start_progress, watching

Vectors = tuple[np.ndarray, np.ndarray, Histories]


def rank_share(job: EvaluationJob, vectors: Vectors, rank: int, world_size: int) -> list[np.ndarray]:
    """Ranks all items for one share of the users; returns the sums that `add_shares` adds up.

    Args:
        job: What to rank.
        vectors: Final vectors of users and items, float32 [num_users, d] and [num_items, d], and scores from all users' histories, which
            are added to their dot products.
        rank, world_size: The share, and the number of shares.
    """
    torch.set_num_threads(job.threads)
    held_out, exclude = masks(open_dataset(job.dataset_url, job.cache_dir), job.split)
    users, items = (torch.from_numpy(array.copy()) for array in vectors[:2])
    config = job.config
    cutoffs, memory_mib, further = config.cutoffs, config.memory_mib, config.metrics
    metrics = rank_users(users, items, held_out, exclude, cutoffs, memory_mib, rank, world_size, further, vectors[2])
    return [state.numpy() for state in metrics.states()]


@ray.remote(num_cpus=1)
def _rank_in_task(job: EvaluationJob, vectors: Vectors, rank: int, world_size: int, lines: ActorHandle) -> list[np.ndarray]:
    lines.start.remote()
    return rank_share(job, vectors, rank, world_size)


def evaluate_vectors(
    job: EvaluationJob, vectors: ray.ObjectRef, cluster: ClusterConfig, lines: ActorHandle | None = None
) -> list[list[np.ndarray]]:
    """Ranks in as many tasks of Ray as the cluster has workers; returns what `rank_share` returned in each.

    Args:
        job: What to rank.
        vectors: Refers to what `rank_share` ranks.
        cluster: The number of workers, and the longest wait for a task to start.
        lines: The actor that carries lines to the driver; None: one of its own.

    Raises:
        RunError: the cluster had no room for a task within `cluster.start_timeout`.
    """
    lines, num_shards = lines or start_progress(), cluster.num_workers
    with watching(lines, cluster.start_timeout, "an evaluation task of 1 CPU"):
        tasks = [_rank_in_task.remote(job, vectors, rank, num_shards, lines) for rank in range(num_shards)]
        return cast(list[list[np.ndarray]], ray.get(tasks))


def add_shares(job: EvaluationJob, num_items: int, shares: Sequence[list[np.ndarray]]) -> dict[str, float]:
    """Computes the metrics over all users from what `rank_share` returned for each share."""
    metrics = RankingMetrics(job.config.cutoffs, num_items, job.config.metrics)
    for states in shares:
        for total, part in zip(metrics.states(), states):
            total += torch.from_numpy(part.copy())
    return metrics.compute()
