"""Sharded exact evaluation of trained models: each process ranks a share of the users, and the sums add up."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import ray
import torch
from ray.actor import ActorHandle

from ...core.metrics import RankingMetrics
from ...core.ranking import rank_users
from ...graph_store.dataset import masks, open_dataset
from ..artifacts.stored_scores import open_scores
from ..config import ClusterConfig
from ..messages import EvaluationJob
from .lines import start_progress, watching


def rank_share(job: EvaluationJob, rank: int, world_size: int) -> list[np.ndarray]:
    """Ranks all items for one share of the users; returns the sums that `add_shares` adds up.

    Args:
        job: What to rank.
        rank, world_size: The share, and the number of shares.
    """
    torch.set_num_threads(job.threads)
    dataset, config = open_dataset(job.dataset_url, job.cache_dir), job.config
    held_out, exclude = masks(dataset, job.split)
    scores = open_scores(job.scores, lambda: dataset.rows("train"), job.cache_dir)
    further, histories = config.metrics, scores.histories
    masked = held_out, exclude, config.cutoffs, config.memory_mib, rank, world_size, further, histories
    return [state.numpy() for state in rank_users(scores.users, scores.items, *masked).states()]


@ray.remote(num_cpus=1)
def _rank_in_task(job: EvaluationJob, rank: int, world_size: int, lines: ActorHandle) -> list[np.ndarray]:
    lines.start.remote()
    return rank_share(job, rank, world_size)


def evaluate_in_tasks(job: EvaluationJob, cluster: ClusterConfig, lines: ActorHandle | None = None) -> list[list[np.ndarray]]:
    """Ranks in as many tasks of Ray as the cluster has workers; returns what `rank_share` returned in each.

    Args:
        job: What to rank.
        cluster: The number of workers, and the longest wait for a task to start.
        lines: The actor that carries lines to the driver; None: one of its own.

    Raises:
        RunError: the cluster had no room for a task within `cluster.start_timeout`.
    """
    lines, num_shards = lines or start_progress(), cluster.num_workers
    with watching(lines, cluster.start_timeout, "an evaluation task of 1 CPU"):
        tasks = [_rank_in_task.remote(job, rank, num_shards, lines) for rank in range(num_shards)]
        return cast(list[list[np.ndarray]], ray.get(tasks))


def add_shares(job: EvaluationJob, num_items: int, shares: Sequence[list[np.ndarray]]) -> dict[str, float]:
    """Computes the metrics over all users from what `rank_share` returned for each share."""
    metrics = RankingMetrics(job.config.cutoffs, num_items, job.config.metrics)
    for states in shares:
        for total, part in zip(metrics.states(), states):
            total += torch.from_numpy(part.copy())
    return metrics.compute()
