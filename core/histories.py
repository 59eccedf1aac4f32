"""Scores users by what they interacted with: sparse similarities of items, summed over a history, where no vectors hold the scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .graph import Csr, weighted_sum

Product = Callable[[Tensor], Tensor]
BLOCK_SCORES = 1 << 22  # scores that are computed at a time: 16 MiB
BLOCK_ENTRIES = 1 << 22  # similarities that are added up at a time
ENTRY_BYTES = 4 * 8 + 4  # of one of them on its way: four indices and the value


@dataclass(frozen=True)
class Similarities:
    """Holds a sparse matrix W [num_items, num_items]: row i has the items that an interaction with item i speaks for.

    Attributes:
        entries: The columns of every row.
        values: The entries' values, float32 [num_entries], in their order.
    """

    entries: Csr
    values: Tensor

    @property
    def num_bytes(self) -> int:
        """Returns the bytes of the arrays."""
        return sum(x.numel() * x.element_size() for x in (self.entries.pointers, self.entries.columns, self.values))

    def to(self, device: torch.device | str) -> "Similarities":
        return Similarities(self.entries.to(device), self.values.to(device))


@dataclass(frozen=True)
class HistoryScores:
    """Scores items for some users: s_u = w_u Σ_i W_i over the items i of u's history.

    Attributes:
        weights: w, float32 [n].
        histories: The items of each user's history, n rows.
        similarities: W.
    """

    weights: Tensor
    histories: Csr
    similarities: Similarities

    @property
    def num_items(self) -> int:
        return self.similarities.entries.num_columns

    def select(self, users: Tensor) -> "HistoryScores":
        """Returns the scores of some of the users, int64 [m] rows."""
        return replace(self, weights=self.weights[users], histories=self.histories.select(users))

    def to(self, device: torch.device | str) -> "HistoryScores":
        return HistoryScores(self.weights.to(device), self.histories.to(device), self.similarities.to(device))

    def rows(self, users: Tensor) -> Tensor:
        """Computes the scores of some users over all items, float32 [m, num_items].

        Every user's sum has the same order whatever the other users are, so that its scores are the same to the last bit on a CPU.

        Args:
            users: int64 [m], rows of `histories`.
        """
        histories, entries = self.histories.select(users), self.similarities.entries
        first = entries.pointers.index_select(0, histories.columns)
        counts = entries.pointers.index_select(0, histories.columns + 1) - first
        flat = torch.zeros(users.numel() * self.num_items, dtype=self.similarities.values.dtype, device=users.device)
        starts, ends = histories.rows * self.num_items, counts.cumsum(0)
        begin, total = 0, int(ends[-1]) if ends.numel() else 0
        for last in range(BLOCK_ENTRIES, total + BLOCK_ENTRIES, BLOCK_ENTRIES):
            stop = int(torch.searchsorted(ends, last, right=True)) if last < total else ends.numel()
            run = slice(begin, max(stop, begin + 1))  # of the histories' items; one of them has at most num_items entries
            begin = run.stop
            own = counts[run]
            offsets = first[run] - (own.cumsum(0) - own)
            places = torch.arange(int(own.sum()), device=users.device) + torch.repeat_interleave(offsets, own)
            targets = torch.repeat_interleave(starts[run], own) + entries.columns.index_select(0, places)
            flat.scatter_add_(0, targets, self.similarities.values.index_select(0, places))
        return flat.view(users.numel(), self.num_items).mul_(self.weights.index_select(0, users)[:, None])

    def products(self) -> tuple[Product, Product]:
        """Returns the matrix S [n, num_items] of the scores as products: x -> S x and y -> S^T y, for x [num_items, m] and y [n, m]."""
        entries, values = self.similarities.entries, self.similarities.values
        matrix, histories = Csr(entries.pointers, entries.columns.long(), self.num_items), self.histories
        (turned, places), (users_of, _) = matrix.transpose(), histories.transpose()
        weights, turned_values = self.weights[:, None], values[places]

        def plain_sum(x: Tensor, rows: Csr) -> Tensor:
            return weighted_sum(x, rows, torch.ones(rows.columns.numel(), device=x.device))

        def to_users(x: Tensor) -> Tensor:
            return weights * plain_sum(weighted_sum(x.contiguous(), matrix, values), histories)

        def to_items(y: Tensor) -> Tensor:
            return weighted_sum(plain_sum(weights * y, users_of), turned, turned_values)

        return to_users, to_items

    def blocks(self) -> Sequence[Tensor]:
        """Returns the rows of all users in blocks whose scores are at most `BLOCK_SCORES`, int64 each."""
        everyone = torch.arange(self.histories.num_rows, device=self.weights.device)
        return everyone.split(max(1, BLOCK_SCORES // max(1, self.num_items)))


Histories = tuple[HistoryScores, ...]


def history_rows(parts: Sequence[HistoryScores], users: Tensor) -> Tensor | None:
    """Computes the sum of several parts' scores for some users over all items, float32 [n, num_items]; None where there is no part."""
    total: Tensor | None = None
    for part in parts:
        rows = part.rows(users)
        total = rows if total is None else total.add_(rows)
    return total


def add_list_scores(scores: Tensor, parts: Sequence[HistoryScores], users: Tensor, candidates: Tensor) -> Tensor:
    """Returns scores of candidate lists with those of the parts added to them, in a new tensor where there are parts.

    Args:
        scores: float [n, k].
        parts: The parts, of the same users each.
        users: int64 [n], the user of each list, as a row of the parts.
        candidates: int64 [n, k], the lists.
    """
    if not parts:
        return scores
    distinct, places = torch.unique(users, return_inverse=True)
    order = torch.argsort(places, stable=True)
    ends = torch.bincount(places, minlength=distinct.numel()).cumsum(0)
    found, start = torch.empty_like(scores), 0
    size = max(1, BLOCK_SCORES // parts[0].num_items)
    for first in range(0, distinct.numel(), size):
        last = min(first + size, distinct.numel())
        rows, stop = history_rows(parts, distinct[first:last]), int(ends[last - 1])
        assert rows is not None
        lists = order[start:stop]
        found[lists] = scores[lists] + rows[(places[lists] - first)[:, None], candidates[lists]]
        start = stop
    return found


def deviations(users: Tensor, items: Tensor, parts: Sequence[HistoryScores]) -> Tensor:
    """Computes the standard deviation over all items of every user's scores, float64 [n]; 0 where they are all equal.

    Args:
        users, items: Vectors, float [n, d] and [num_items, d], whose dot products are the other part of the scores; d may be 0.
        parts: Scores from the same users' histories; at least one.
    """
    found = []
    for ids in parts[0].blocks():
        rows = (users[ids] @ items.T).double() if items.shape[1] else torch.zeros(1, 1, dtype=torch.float64, device=users.device)
        of_histories = history_rows(parts, ids)
        assert of_histories is not None
        rows = rows + of_histories
        deviation, largest = rows.std(1, correction=0), rows.abs().amax(1)
        found.append(torch.where(deviation > 1e-6 * largest, deviation, 0.0))  # less is a rounding error
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)
