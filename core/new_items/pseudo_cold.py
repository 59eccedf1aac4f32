"""Ranks train items as if nobody had touched them, a fold at a time, to choose a map by it (docs/method.md 11.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph import Csr
from .draws import STREAM_FOLDS, STREAM_ITEMS, STREAM_USERS, order_by_draw

NUM_FOLDS = 5
MOST_USERS, MOST_ITEMS = 1000, 2000  # of each fold; more would not tell more
LIST_LENGTH = 20


@dataclass(frozen=True)
class Fold:
    """Holds a fold of train items, and the users who rank them.

    Attributes:
        places: int64 [n], the fold's places among the fitted items.
        ranked: int64 [r], places in `places` of the items that are ranked.
        users: float32 [u, d], the users' vectors from their other train items: they do not know the fold.
        is_held: bool [u, r], whether a user has a train interaction with an item.
    """

    places: Tensor
    ranked: Tensor
    users: Tensor
    is_held: Tensor

    @property
    def list_length(self) -> int:
        """Returns K: 20, or a quarter of the ranked items where that is less, since longer lists would hold nearly all of them."""
        return max(1, min(LIST_LENGTH, self.ranked.numel() // 4))

    def recall(self, predicted: Tensor) -> Tensor:
        """Computes Recall@K of every user, float64 [u].

        Args:
            predicted: Item vectors [n, d] of the fold.
        """
        scores = self.users.to(predicted.dtype) @ predicted[self.ranked].T
        best = scores.topk(self.list_length, dim=1).indices
        return self.is_held.gather(1, best).sum(1).double() / self.is_held.sum(1)


def make_folds(items: Tensor, train: Csr, rows: Tensor, seed: int) -> list[Fold]:
    """Cuts the fitted items into folds by a seeded draw.

    A user's vector for a fold is that of `recommend_from_history` on the user's train items that are not of the fold. The student's own
    user vectors know the fold: it was trained with these items, and where it learnt from features, a user's vector holds them.

    Args:
        items: The student's final vectors of all items [num_items, d].
        train: Every user's train items; may be memory-mapped.
        rows: int64 [n], the fitted items.
        seed: Of the draws.
    """
    drawn = order_by_draw(STREAM_FOLDS, seed, torch.arange(rows.numel()))
    folds = []
    for number in range(NUM_FOLDS):
        places = drawn[number::NUM_FOLDS].sort().values
        place_of = torch.full((train.num_columns,), -1)
        place_of[rows[places]] = torch.arange(places.numel())
        ranked = order_by_draw(STREAM_ITEMS, seed, torch.arange(places.numel()))[:MOST_ITEMS].sort().values
        column_of = torch.full((places.numel() + 1,), -1)  # the last entry is of items that are not of the fold
        column_of[ranked] = torch.arange(ranked.numel())
        able = _able(train, place_of, column_of)
        chosen = order_by_draw(STREAM_USERS, seed, able.nonzero().flatten())[:MOST_USERS].sort().values
        folds.append(_fold(items, train.select(chosen), place_of, column_of, places, ranked))
    return [fold for fold in folds if fold.users.shape[0]]


def _able(train: Csr, place_of: Tensor, column_of: Tensor) -> Tensor:
    """Returns whether a user has ranked items of a fold, and others, bool [num_users]; the places are those of `make_folds`."""
    found = []
    for block in train.blocks():
        place, users = place_of[block.columns], block.rows
        others = torch.bincount(users[place < 0], minlength=block.num_rows)
        held = torch.bincount(users[column_of[place] >= 0], minlength=block.num_rows)
        found.append((others > 0) & (held > 0))
    return torch.cat(found)


def _fold(items: Tensor, of_users: Csr, place_of: Tensor, column_of: Tensor, places: Tensor, ranked: Tensor) -> Fold:
    place = place_of[of_users.columns]
    column, is_other = column_of[place], place < 0
    sums = torch.zeros(of_users.num_rows, items.shape[1]).index_add_(0, of_users.rows[is_other], items[of_users.columns[is_other]].float())
    counts = torch.bincount(of_users.rows[is_other], minlength=of_users.num_rows)
    is_held = torch.zeros(of_users.num_rows, ranked.numel(), dtype=torch.bool)
    is_held[of_users.rows[column >= 0], column[column >= 0]] = True
    return Fold(places, ranked, sums / counts[:, None].sqrt(), is_held)
