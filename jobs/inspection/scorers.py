"""Scores that need no training: popularity, co-occurrence, content, and spectral vectors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.graph import Csr, weighted_sum
from .rankings import Scorer

DENSE_SHARE = 1 / 8  # of overlaps that are not 0, from which on a dense product is faster than a sparse one


def by_popularity(train: Csr, weights: Tensor) -> Scorer:
    """An item's score is the sum of its users' weights, the same for every user.

    Args:
        train: Train items of all users.
        weights: float [num_users].
    """
    counts = torch.zeros(train.num_columns, dtype=torch.float64)
    counts.index_add_(0, train.columns, weights.double()[train.rows])
    return lambda users: counts.float().repeat(users.numel(), 1)


class Overlaps:
    """How many train items a user shares with every user, as sparse products; keeps those of the last block of users."""

    def __init__(self, train: Csr) -> None:
        from scipy import sparse

        ones = np.ones(train.columns.numel(), np.float32)
        shape = (train.num_rows, train.num_columns)
        self.by_user: Any = sparse.csr_matrix((ones, train.columns.numpy(), train.pointers.numpy()), shape)
        self.by_item: Any = self.by_user.T.tocsr()
        self._last: tuple[Tensor, Any] | None = None

    def of(self, users: Tensor) -> Any:
        """A sparse matrix [n, num_users] of counts, float32; not to be changed."""
        if self._last is None or not torch.equal(self._last[0], users):
            self._last = users, self.by_user[users.numpy()] @ self.by_item
        return self._last[1]


def by_co_occurrence(overlaps: Overlaps, weights: Tensor) -> Scorer:
    """The score of item i for user u is Σ_v weight_v |items of u and v| [v has i]: how often i occurs beside u's items.

    Without weights these are the counts of A A^T A, where the items of u stand for the rows of the co-occurrence counts A^T A. What the
    user's own row adds falls on train items, which are masked.

    Args:
        overlaps: Of the train interactions.
        weights: float [num_users].
    """
    from scipy import sparse

    given = weights.numpy().astype(np.float32)

    def score(users: Tensor) -> Tensor:
        shared = overlaps.of(users)
        weighted = sparse.csr_matrix((shared.data * given[shared.indices], shared.indices, shared.indptr), shared.shape)
        if shared.nnz < DENSE_SHARE * shared.shape[0] * shared.shape[1]:
            return torch.from_numpy((weighted @ overlaps.by_user).toarray())
        return torch.from_numpy(np.ascontiguousarray((overlaps.by_item @ np.ascontiguousarray(weighted.toarray().T)).T))

    return score


def by_content(train: Csr, rows: Tensor) -> Scorer:
    """The score of an item is the cosine to the sum of the user's items, all of unit length (a factor of the user apart).

    Args:
        train: Train items of all users.
        rows: Rows of unit length, float32 [num_items, dim]; zeros where the modality is missing. They may be memory-mapped.
    """

    def score(users: Tensor) -> Tensor:
        items = train.select(users)
        profiles = weighted_sum(rows, items, torch.ones(items.columns.numel()))
        return profiles @ rows.T

    return score


def by_vectors(users: Tensor, items: Tensor) -> Scorer:
    """Dot products of vectors, float32 [num_users, d] and [num_items, d]."""
    return lambda some: users[some] @ items.T
