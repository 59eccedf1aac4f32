"""Evaluates exact rankings of the whole catalog, and lists the best unseen items (docs/method.md 5)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .graph import Csr
from .histories import HistoryScores
from .metric_names import split_metric
from .metrics import RankingMetrics, metric_of_users
from .top_k import top_k

USERS_AT_A_TIME = 1 << 16  # whose vectors and masks are in memory


class Rows(Protocol):
    """Gives rows of a sparse matrix, such as the items that are masked for some users; a `Csr` is one."""

    def select(self, rows: Tensor) -> Csr:
        """Returns the given rows, int64 [n], as a matrix of n rows."""


@dataclass(frozen=True)
class MergedRows:
    """Gives the union of the rows of two matrices with the same numbers of rows and columns; a `Rows`."""

    first: Csr
    second: Csr

    def select(self, rows: Tensor) -> Csr:
        """See `Rows`."""
        return merge_rows(self.first.select(rows), self.second.select(rows))

    def to(self, device: torch.device | str) -> "MergedRows":
        return MergedRows(self.first.to(device), self.second.to(device))


def top_unseen(users: Tensor, items: Tensor, seen: Csr, train: Csr, depth: int, histories: Sequence[HistoryScores] = ()) -> Tensor:
    """Ranks the best unseen items of some users, int64 [rows, depth], best first.

    Args:
        users: Final vectors of the users [rows, d].
        items: Final vectors of all items [num_items, d].
        seen: Train items of those users, a row for each.
        train: Train items of all users; the number of items that the busiest user has not seen bounds the depth.
        depth: Length of the ranking.
        histories: Scores from those users' histories, which are added to the dot products.
    """
    depth = unseen_depth(train, depth)
    if not users.shape[0]:  # a worker without a share of a small last batch
        return torch.zeros(0, depth, dtype=torch.int64, device=users.device)
    return torch.cat([ranked for _, _, ranked in top_k(users, items, depth, seen, histories=histories)])


def unseen_depth(train: Csr, depth: int) -> int:
    """Returns a depth, or the number of items that the busiest user has not seen where that is less: each user's ranking is so deep."""
    return min(depth, train.num_columns - int(train.degrees.max()))


def rank_users(
    users: Tensor,
    items: Tensor,
    held_out: Csr,
    exclude: Rows,
    cutoffs: list[int],
    memory_mib: int = 256,
    rank: int = 0,
    world_size: int = 1,
    further: Sequence[str] = (),
    histories: Sequence[HistoryScores] = (),
) -> RankingMetrics:
    """Computes the full-ranking metrics of one worker's share of the users with at least one held-out item.

    Args:
        users: float [num_users, d]; items: float [num_items, d]; both may be memory-mapped.
        held_out: Every user's items in the split that is evaluated.
        exclude: Every user's items that are masked: train when validating, train and validation when testing.
        cutoffs: List lengths.
        memory_mib: Bound on one block of scores, MiB.
        rank, world_size: The worker, and the number of workers that share the users.
        further: Names of metrics beside those that ship, as `evaluation.metrics` lists them.
        histories: Scores from all users' histories, which are added to the dot products.
    """
    share = held_out.degrees.nonzero().squeeze(1)[rank::world_size]
    metrics = RankingMetrics(cutoffs, items.shape[0], further)
    for ids in share.split(USERS_AT_A_TIME):
        own = [part.select(ids) for part in histories]
        rank_rows(users[ids], items, held_out.select(ids), exclude.select(ids), cutoffs, memory_mib, further, own, metrics)
    return metrics


def rank_rows(
    users: Tensor,
    items: Tensor,
    held_out: Csr,
    exclude: Csr,
    cutoffs: list[int],
    memory_mib: int = 256,
    further: Sequence[str] = (),
    histories: Sequence[HistoryScores] = (),
    metrics: RankingMetrics | None = None,
) -> RankingMetrics:
    """Computes the full-ranking metrics of some users, each of whom has a row in `users`, `held_out`, `exclude` and `histories`.

    Args:
        users: float [n, d].
        items: float [num_items, d], all items; may be memory-mapped.
        held_out: n rows, each with at least one item.
        exclude: n rows of masked items.
        cutoffs, memory_mib, further: As in `rank_users`.
        histories: Scores from these users' histories, which are added to the dot products.
        metrics: Those of other users, which these users are added to; None: of these users alone.
    """
    metrics = metrics or RankingMetrics(cutoffs, items.shape[0], further)
    for rows, scores, ranked in top_k(users, items, max(cutoffs), exclude, memory_mib, histories):
        ranked = torch.where(scores == -torch.inf, items.shape[0], ranked)
        metrics.update(ranked, held_out.select(torch.arange(rows.start, rows.stop, device=users.device)))
    return metrics


def evaluate(
    users: Tensor,
    items: Tensor,
    held_out: Csr,
    exclude: Rows,
    cutoffs: list[int],
    memory_mib: int = 256,
    rank: int = 0,
    world_size: int = 1,
    all_reduce: Callable[[list[Tensor]], None] | None = None,
    further: Sequence[str] = (),
    histories: Sequence[HistoryScores] = (),
) -> dict[str, float]:
    """Computes the metrics of `rank_users` over all workers, as {"recall@20": ..., ...}, the same on every worker.

    Args:
        all_reduce: Sums tensors over workers, in place; needed when world_size > 1.

    All other arguments are those of `rank_users`.
    """
    metrics = rank_users(users, items, held_out, exclude, cutoffs, memory_mib, rank, world_size, further, histories)
    if all_reduce is not None:
        all_reduce(metrics.states())
    return metrics.compute()


def merge_rows(first: Csr, second: Csr) -> Csr:
    """Returns the union of two sets of pairs, a row at a time; both have the same numbers of rows and columns."""
    rows = torch.cat([first.rows, second.rows])
    columns = torch.cat([first.columns, second.columns])
    keys = torch.unique(rows * first.num_columns + columns)
    return Csr.from_pairs(keys // first.num_columns, keys % first.num_columns, first.num_rows, first.num_columns)


def held_out_places(
    users: Tensor,
    items: Tensor,
    held_out: Csr,
    exclude: Rows,
    depth: int,
    memory_mib: int = 256,
    histories: Sequence[HistoryScores] = (),
) -> Tensor:
    """Finds the place of every held-out item in its user's full ranking; metrics of lists of up to `depth` items follow from it.

    Args:
        users, items: float [num_users, d] and [num_items, d].
        held_out, exclude: As in `rank_users`.
        depth: Length of the lists.
        memory_mib: Bound on one block of scores, MiB.
        histories: Scores from all users' histories, which are added to the dot products.

    Returns:
        int64 [num_pairs], in the order of `held_out`: 0 for the first place, `depth` where the item is not in the list.
    """
    with_items = held_out.degrees.nonzero().squeeze(1)
    wanted, places, own = held_out.select(with_items), [], [part.select(with_items) for part in histories]
    for rows, scores, ranked in top_k(users[with_items], items, depth, exclude.select(with_items), memory_mib, own):
        ranked = torch.where(scores == -torch.inf, -1, ranked)
        block = wanted.select(torch.arange(rows.start, rows.stop))
        is_hit = ranked[block.rows] == block.columns[:, None]  # [pairs of the block, depth]
        places.append(torch.where(is_hit.any(1), is_hit.int().argmax(1), depth))
    return torch.cat(places) if places else torch.zeros(0, dtype=torch.int64)


def metric_of_each_user(
    name: str,
    users: Tensor,
    items: Tensor,
    held_out: Csr,
    exclude: Rows,
    memory_mib: int = 256,
    histories: Sequence[HistoryScores] = (),
) -> Tensor:
    """Ranks the items of every user with held-out ones, and computes a metric of each such user's list.

    Args:
        name: Metric and list length, such as "recall@20".
        users, items: float [num_users, d] and [num_items, d].
        held_out, exclude: As in `rank_users`.
        memory_mib: Bound on one block of scores, MiB.
        histories: Scores from all users' histories, which are added to the dot products.

    Returns:
        float64 [n], for the users with held-out items in ascending order. Its mean is what `evaluate` reports.

    Raises:
        InputError: there is no such metric, or it has no value for a single user.
    """
    metric, k = split_metric(name)
    places = held_out_places(users, items, held_out, exclude, k, memory_mib, histories)
    _, rows, degrees = held_out.rows.unique(return_inverse=True, return_counts=True)
    return metric_of_users(metric, k, places, rows, degrees)
