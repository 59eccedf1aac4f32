"""Ranks items that are held out whole among themselves: the measure of a map of new items (docs/method.md 11.5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .graph import Csr
from .metrics import RankingMetrics
from .new_items.encoding import Encoding, RawRows
from .ranking import rank_rows
from .rows import rownorm

USERS_AT_A_TIME = 4096


@dataclass(frozen=True)
class ColdSplit:
    """Holds the cold items and who interacted with them.

    Attributes:
        items: int64 [n], the cold items, ascending.
        users: int64 [u], the users with a cold interaction and a train interaction.
        held_out: Cold items of each of these users, by their place in `items`.
        history: Train items of each of these users.
    """

    items: Tensor
    users: Tensor
    held_out: Csr
    history: Csr

    @staticmethod
    def of(cold: Csr, train: Csr) -> "ColdSplit":
        """Returns the split from every user's cold items and train items."""
        items = torch.unique(cold.columns)
        place = torch.full((cold.num_columns,), -1)
        place[items] = torch.arange(items.numel())
        users = ((cold.degrees > 0) & (train.degrees > 0)).nonzero().flatten()
        chosen = cold.select(users)
        return ColdSplit(items, users, Csr(chosen.pointers, place[chosen.columns], items.numel()), train.select(users))

    def cutoffs(self, cutoffs: Sequence[int]) -> list[int]:
        """Returns the list lengths that the cold items can fill."""
        return [k for k in cutoffs if k <= self.items.numel()]


def vector_metrics(
    split: ColdSplit, users: Tensor, cold_items: Tensor, cutoffs: Sequence[int], further: Sequence[str] = ()
) -> dict[str, float]:
    """Computes the metrics of rankings of the cold items by dot product, nothing masked.

    Args:
        split: The cold items.
        users: float [num_users, d], the vectors of all users.
        cold_items: float [n, d], the vectors of the cold items.
        cutoffs: List lengths; those beyond the number of cold items are left out.
        further: Names of metrics beside those that ship.
    """
    kept = split.cutoffs(cutoffs)
    if not kept:
        return {}
    return _rank(split, users[split.users], cold_items, kept, further).compute()


def content_metrics(
    split: ColdSplit, features: Mapping[str, RawRows], whiten: bool, cutoffs: Sequence[int], further: Sequence[str] = ()
) -> dict[str, float]:
    """Computes the metrics of the content cosine: Σ_m cos(Σ_{j in train items} rownorm(x_m[j]), x_m[i]) for a cold item i.

    Args:
        split: The cold items.
        features: Raw rows of all items [num_items, d_m] with their presence, by modality; standardised over the items that are not cold.
        whiten: Whether standardised rows are whitened.
        cutoffs, further: As in `vector_metrics`.
    """
    kept = split.cutoffs(cutoffs)
    if not kept:
        return {}
    units = []
    for rows, present in features.values():
        warm = present.clone()
        warm[split.items] = False
        if not warm.any():  # nothing says what its columns mean
            continue
        units.append(rownorm(Encoding.of((rows, warm), whiten).standardisation.apply(rows, present)))
    cold_items = torch.cat([unit[split.items] for unit in units], 1)
    metrics = RankingMetrics(kept, split.items.numel(), further)
    for start in range(0, split.users.numel(), USERS_AT_A_TIME):
        here = torch.arange(start, min(start + USERS_AT_A_TIME, split.users.numel()))
        history = split.history.select(here)
        sums = [torch.zeros(here.numel(), unit.shape[1]).index_add_(0, history.rows, unit[history.columns]) for unit in units]
        block = ColdSplit(split.items, split.users[here], split.held_out.select(here), history)
        ranked = _rank(block, torch.cat([rownorm(profile) for profile in sums], 1), cold_items, kept, further)
        for total, part in zip(metrics.states(), ranked.states()):
            total += part
    return metrics.compute()


def random_metrics(split: ColdSplit, cutoffs: Sequence[int]) -> dict[str, float]:
    """Computes what rankings at random have in the mean: recall K / n, and the NDCG of hits that each place has with chance |H| / n."""
    count, held = split.items.numel(), split.held_out.degrees
    values = {}
    for k in split.cutoffs(cutoffs):
        discounts = 1 / torch.arange(2, k + 2, dtype=torch.float64).log2()
        ideal = torch.cat([torch.zeros(1, dtype=torch.float64), discounts.cumsum(0)])[held.clamp(max=k)]
        values[f"recall@{k}"] = k / count
        values[f"ndcg@{k}"] = float((held / count * discounts.sum() / ideal).mean()) if held.numel() else 0.0
    return values


def _rank(split: ColdSplit, users: Tensor, cold_items: Tensor, cutoffs: list[int], further: Sequence[str]) -> RankingMetrics:
    nothing = Csr(torch.zeros(split.users.numel() + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), split.items.numel())
    return rank_rows(users, cold_items, split.held_out, nothing, cutoffs, further=further)
