"""Ranks items that lie in parts, those of a bundle and those that were added to it, one part after the other.

A product of matrices may differ in its last bits with the number of its columns. One product over all items would so change the scores of
items that have been there before others were added; a product for each part does not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import InputError
from .graph import Csr
from .top_k import top_k, top_k_of_scores

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

    Raises:
        InputError: k is larger than the number of items.
    """
    if allowed is None and k > items.shape[0]:
        raise InputError(f"k={k} is larger than the catalog of {items.shape[0]} items; ask for at most {items.shape[0]}")
    lists = [_rank_part(users, items, slice(*part), k, exclude, allowed) for part in zip((0, *ends), ends)]
    scores, ranked = (torch.cat(parts, 1) for parts in zip(*lists))
    scores, order = torch.sort(scores, dim=1, descending=True, stable=True)  # earlier parts hold lower indices
    return scores[:, :k], ranked.gather(1, order[:, :k])


def _rank_part(users: Tensor, items: Tensor, part: slice, k: int, exclude: Csr | None, allowed: Tensor | None) -> Ranked:
    """Returns the best scores of one part [users, at most k] with the items' indices."""
    size = part.stop - part.start
    if exclude is not None:
        inside = (exclude.columns >= part.start) & (exclude.columns < part.stop)
        exclude = Csr.from_pairs(exclude.rows[inside], exclude.columns[inside] - part.start, exclude.num_rows, size)
    if allowed is None:
        blocks = [(scores, ranked) for _, scores, ranked in top_k(users, items[part], min(k, size), exclude)]
        if not blocks:
            return users.new_empty(0, min(k, size)), torch.empty(0, min(k, size), dtype=torch.int64)
        scores, ranked = (torch.cat(column) for column in zip(*blocks))
        return scores, ranked + part.start
    chosen = allowed[(allowed >= part.start) & (allowed < part.stop)]
    scores = users @ items[chosen].T
    if exclude is not None:
        place = torch.full((size,), -1)
        place[chosen - part.start] = torch.arange(chosen.numel())
        columns = place[exclude.columns]
        scores[exclude.rows[columns >= 0], columns[columns >= 0]] = -torch.inf
    values, columns = top_k_of_scores(scores, min(k, chosen.numel()))
    return values, chosen[columns]
