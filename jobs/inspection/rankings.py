"""How well simple scores rank the validation items: the project's recall, and the share of other items that an item beats (AUC).

Every user with validation items is ranked against all items, train items masked, as in training and evaluation. Blocks of users are scored
by all scorers one after the other, so that memory is a few blocks of [users of a block, num_items]. Where users and items are too many, a
seeded sample of the users stands for all.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.graph import Csr
from ...core.metrics import metric_of_users
from ...core.random import derive_seed, permuted
from ...graph_store.dataset import Dataset

LIST_LENGTH = 20  # K of Recall@K, or the number of items where it is smaller
MOST_SCORES = 1 << 28  # of one scorer; with more than that a sample of the users is ranked
LEAST_USERS = 2000  # a sample has no fewer
BLOCK_SCORES, LEAST_BLOCK = 1 << 22, 32  # scores in a block: 16 MiB stay near a CPU's caches; and its least number of users
SAMPLE_KEY = 0x696E73

# From the users of a block, int64 [n], to their scores of all items, float32 [n, num_items], a tensor that may be changed.
Scorer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ranking:
    """How one score ranks the validation items.

    Attributes:
        recall: Recall@K, mean over users.
        error: Its standard error over users.
        difference_error: Standard error of its difference from the best of the rankings, over the same users; 0 for the best itself.
        auc: Mean over validation items of the share of the user's other items, train items left out, that score lower (half of ties).
        auc_cold: The same among validation items without train interactions; None where there are none.
    """

    recall: float
    error: float
    difference_error: float
    auc: float
    auc_cold: float | None


@dataclass(frozen=True)
class HeldOut:
    """The validation items of the users that are ranked.

    Attributes:
        users: int64 [n], ascending.
        wanted: Their validation items, n rows.
        train: Their train items, n rows.
        num_users: Number of users with validation items, of whom these n may be a sample.
        is_cold: bool [num_items], items without train interactions.
        k: Length of the lists.
    """

    users: Tensor
    wanted: Csr
    train: Csr
    num_users: int
    is_cold: Tensor
    k: int

    @property
    def chance(self) -> float:
        """Recall@K of lists in random order, mean over users: K / candidates, all items but the user's train items."""
        candidates = self.train.num_columns - self.train.degrees
        return float((self.k / candidates.double()).clamp(max=1).mean())


@dataclass(frozen=True)
class Judged:
    """What one score does for every user and pair.

    Attributes:
        recalls: float64 [n], each user's Recall@K.
        is_hit: bool [pairs], which validation items are among the user's first K.
        beaten: float64 [pairs], the share of other items that the item beats; NaN where there is no other.
    """

    recalls: Tensor
    is_hit: Tensor
    beaten: Tensor


def held_out_items(dataset: Dataset, train: Csr, seed: int) -> HeldOut:
    """Reads the validation items of all users that have some, or of a seeded sample of these.

    Args:
        dataset: With a validation split.
        train: Train items of all users.
        seed: Seed of the sample.
    """
    validation = dataset.csr("validation")
    users = validation.degrees.nonzero().squeeze(1)
    num_users, most = users.numel(), max(LEAST_USERS, MOST_SCORES // dataset.num_items)
    if num_users > most:
        users = users[permuted(torch.arange(most), num_users, SAMPLE_KEY, derive_seed(seed)).sort().values]
    is_cold = torch.bincount(train.columns, minlength=dataset.num_items) == 0
    k = min(LIST_LENGTH, dataset.num_items)
    return HeldOut(users, validation.select(users), train.select(users), num_users, is_cold, k)


def judge(held_out: HeldOut, scorers: Mapping[str, Scorer]) -> dict[str, Judged]:
    """Ranks the held-out users by every scorer, a block of users at a time."""
    num_items = held_out.wanted.num_columns
    size = max(LEAST_BLOCK, BLOCK_SCORES // num_items)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in scorers}
    for start in range(0, held_out.users.numel(), size):
        rows = torch.arange(start, min(start + size, held_out.users.numel()))
        wanted, masked = held_out.wanted.select(rows), held_out.train.select(rows)
        for name, score in scorers.items():
            scores = score(held_out.users[rows])
            scores[masked.rows, masked.columns] = -torch.inf
            found[name].append(_places(scores, wanted, num_items - masked.degrees, held_out.k))
    judged = {}
    for name, blocks in found.items():
        places, beaten = (torch.cat(parts) for parts in zip(*blocks))
        recalls = metric_of_users("recall", held_out.k, places, held_out.wanted.rows, held_out.wanted.degrees)
        judged[name] = Judged(recalls, places < held_out.k, beaten)
    return judged


def _places(scores: Tensor, wanted: Csr, num_candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ranks the wanted items as `core.top_k.top_k_of_scores` does: of equal scores the lower index comes first.

    That function sorts all of a row in which scores tie at the end of the list, as counts do in most rows. Counting what is above an item
    needs no order: with 18,357 items it took a thirtieth of the time.

    Args:
        scores: float32 [rows, num_items], -inf where an item is no candidate.
        wanted: The items to find, of the same rows; candidates all of them.
        num_candidates: int64 [rows].
        k: Length of the lists.

    Returns:
        Their places, int64 [pairs], k where they are not in the list; and the share of the other candidates that they beat, float64
        [pairs].
    """
    places, beaten = [], []
    for some_rows, some_columns in zip(wanted.rows.split(scores.shape[0]), wanted.columns.split(scores.shape[0])):
        rows, columns, every = some_rows.numpy(), some_columns.numpy(), scores.numpy()
        others, own = every[rows], every[rows, columns][:, None]
        above, equal = np.count_nonzero(others > own, axis=1), np.count_nonzero(others == own, axis=1) - 1
        place, tied = above.copy(), np.flatnonzero((equal > 0) & (above < k))
        before = np.arange(scores.shape[1]) < columns[tied][:, None]
        place[tied] += np.count_nonzero((others[tied] == own[tied]) & before, axis=1)
        num_others = num_candidates.numpy()[rows] - 1.0
        with np.errstate(invalid="ignore"):  # 0 / 0 where the item is the only candidate
            beaten.append(torch.from_numpy((num_others - above - 0.5 * equal) / num_others))
        places.append(torch.from_numpy(np.minimum(place, k)))
    return torch.cat(places), torch.cat(beaten)


def rankings_of(judged: Mapping[str, Judged], held_out: HeldOut) -> dict[str, Ranking]:
    """Sums up what was judged."""
    best = max(judged.values(), key=lambda one: float(one.recalls.mean())).recalls
    is_cold = held_out.is_cold[held_out.wanted.columns]
    return {
        name: Ranking(
            float(one.recalls.mean()),
            standard_error(one.recalls),
            standard_error(one.recalls - best),
            _mean(one.beaten) or 0.0,
            _mean(one.beaten[is_cold]),
        )
        for name, one in judged.items()
    }


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of float64 [n]; 0 for a single value, which tells nothing about it."""
    return float(values.std()) / math.sqrt(values.numel()) if values.numel() > 1 else 0.0


def error_bounds(recall: float, num_wanted: Tensor) -> tuple[float, float]:
    """Standard errors that a mean Recall@K can have by its size alone: sqrt(p (1 - p) Σ 1/h_u) / n and sqrt(p (1 - p) / n).

    A user's recall lies in [0, 1] and has mean p, so its variance is at most p (1 - p), which is reached where a user's h_u items are found
    all or none. Where they are found independently of each other it is p (1 - p) / h_u.

    Args:
        recall: p.
        num_wanted: h_u, int64 [n].
    """
    variance, count = recall * (1 - recall), num_wanted.numel()
    return math.sqrt(variance * float((1 / num_wanted.double()).sum())) / count, math.sqrt(variance / count)


def _mean(values: Tensor) -> float | None:
    """The mean of the values that are not NaN; None where there are none."""
    kept = values[~values.isnan()]
    return float(kept.mean()) if kept.numel() else None
