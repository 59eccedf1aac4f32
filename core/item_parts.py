"""Ranks items that lie in parts, those of a bundle and those that were added to it, one part after the other.

A product of matrices may differ in its last bits with the number of its columns. One product over all items would so change the scores of
items that have been there before others were added; a product for each part does not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .graph import Csr
from .top_k import top_k

Ranked = tuple[Tensor, Tensor]  # scores [users, k] in descending order, and item indices, int64 [users, k]


def rank_parts(users: Tensor, items: Tensor, ends: Sequence[int], k: int, exclude: Csr | None, allowed: Tensor | None) -> Ranked:
    """Ranks all items, or some of them, for each user; of equal scores the lower index comes first.

    Args:
        users: float [num_users, d].
        items: float [num_items, d].
        ends: The end of each part among the items, ascending; the last one is num_items.
        k: List length, at most the number of items that are ranked.
        exclude: For every user the items that may not be recommended; their scores are -inf.
        allowed: int64 [n], ascending, the only items that are ranked; all items by default.
    """
    lists = [_rank_part(users, items, slice(*part), k, exclude, allowed) for part in zip((0, *ends), ends)]
    scores, ranked = (torch.cat(parts, 1) for parts in zip(*lists))
    scores, order = torch.sort(scores, dim=1, descending=True, stable=True)  # earlier parts hold lower indices
    return scores[:, :k], ranked.gather(1, order[:, :k])


def _rank_part(users: Tensor, items: Tensor, part: slice, k: int, exclude: Csr | None, allowed: Tensor | None) -> Ranked:
    """Returns the best scores of one part [users, at most k] with the items' indices."""
    chosen = None if allowed is None else allowed[(allowed >= part.start) & (allowed < part.stop)]
    own = items[part] if chosen is None else items[chosen]
    count = min(k, own.shape[0])
    if exclude is not None and count:
        if chosen is None:
            inside = (exclude.columns >= part.start) & (exclude.columns < part.stop)
            places = exclude.columns - part.start
        else:
            places = torch.searchsorted(chosen, exclude.columns).clamp_(max=chosen.numel() - 1)
            inside = chosen[places] == exclude.columns
        exclude = Csr.from_pairs(exclude.rows[inside], places[inside], exclude.num_rows, own.shape[0])
    scores, ranked = users.new_empty(users.shape[0], count), torch.empty(users.shape[0], count, dtype=torch.int64)
    for rows, of_block, best in top_k(users, own, count, exclude) if count else ():
        scores[rows], ranked[rows] = of_block, best + part.start if chosen is None else chosen[best]
    return scores, ranked
