"""Ranks catalogs whose item vectors do not fit into a host's memory: many users among one shard of the items before the next one.

`top_k` reads all items for each block of users. Where they are mapped from a file that is larger than memory, that would read the whole
file again for every few hundred users; so the items are cut into shards, and the lists of all shards are merged (docs/method.md 5).
A user's list in one shard has nothing to do with the other shards, so the merged list is exact.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .graph import Csr
from .histories import HistoryScores
from .memory import memory_limit
from .scoring import candidate_scores
from .top_k import FULL_COLUMNS, top_k, top_k_of_scores

SHARE = 4  # a shard takes at most this part of the memory
USERS_A_PASS = 1 << 17  # that are ranked among a shard before the next one: their lists so far are in memory


def rows_a_shard(num_items: int, row_bytes: int, memory: int | None = None) -> int | None:
    """Returns the number of items in a shard; None where all items are ranked at once.

    All shards have the same number, a multiple of `FULL_COLUMNS`, but for the last one, which has what is left.

    Args:
        num_items: The number of items in the catalog.
        row_bytes: Bytes of an item's vector.
        memory: Bytes of memory of this host; those that the system or a container's limit gives by default.
    """
    most = max(1, (memory or memory_limit()) // SHARE // max(1, row_bytes))
    if num_items <= most:
        return None
    even = -(-num_items // -(-num_items // most))
    return -(-even // FULL_COLUMNS) * FULL_COLUMNS


def best_of_shards(
    users: Tensor,
    items: Tensor,
    k: int,
    exclude: Csr,
    memory_mib: int = 256,
    histories: Sequence[HistoryScores] = (),
    shard: int | None = None,
) -> Tensor:
    """Ranks the whole catalog for some users as `top_k` does; returns the items, int64 [num_users, k], best first.

    The items of each shard's lists are scored once more by a product of one width, whose columns are all rounded alike: two items with
    the same vector have the same score, whatever shards they are in, and the lower index comes first.

    Args:
        users: float [num_users, d].
        items: float [num_items, d]; may be memory-mapped.
        k: List length.
        exclude: For every user the items that may not be recommended; at least k others have to be left.
        memory_mib, histories: As in `top_k`; with histories all items are ranked at once.
        shard: Items of a shard, as `rows_a_shard` gives them; None: all items at once.
    """
    if shard is None:
        return torch.cat([ranked for _, _, ranked in top_k(users, items, k, exclude, memory_mib, histories)])
    assert not histories, "scores from histories need whole rows of scores"
    best, found = users.new_empty(users.shape[0], 0), torch.empty(users.shape[0], 0, dtype=torch.int64)
    for first in range(0, items.shape[0], shard):
        part = items[first : first + shard]
        values, ranked = _best_of_shard(users, part, min(k, len(part)), exclude.between(first, first + len(part)), memory_mib)
        values, order = torch.sort(torch.cat([best, values], 1), dim=1, descending=True, stable=True)  # earlier shards hold lower indices
        best, found = values[:, :k], torch.cat([found, ranked + first], 1).gather(1, order[:, :k])
    return found


def _best_of_shard(users: Tensor, items: Tensor, k: int, exclude: Csr, memory_mib: int) -> tuple[Tensor, Tensor]:
    """Returns the k best items of one shard, and their scores by a product of one width; -inf for items that are excluded."""
    scores, found = users.new_empty(users.shape[0], k), torch.empty(users.shape[0], k, dtype=torch.int64)
    width = -(-k // FULL_COLUMNS) * FULL_COLUMNS
    for rows, values, ranked in top_k(users, items, k, exclude, memory_mib):
        ranked, order = ranked.sort(1)  # ascending, so that of equal scores the lower index comes first
        padded = torch.cat([ranked, ranked[:, :1].expand(-1, width - k)], 1)
        again = candidate_scores(users[rows], items, torch.arange(len(ranked)), padded)[:, :k]
        again = again.masked_fill(values.gather(1, order) == -torch.inf, -torch.inf)
        scores[rows], places = top_k_of_scores(again, k)
        found[rows] = ranked.gather(1, places)
    return scores, found
