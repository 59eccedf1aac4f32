"""Ranks items that lie in parts, those of a bundle and those that were added to it, one part after the other.

A product of matrices may differ in its last bits with the number of its columns. One product over all items would so change the scores of
items that have been there before others were added; a product for each part does not.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from .graph import Csr
from .top_k import top_k

Ranked = tuple[Tensor, Tensor]  # scores [users, k] in descending order, and item indices, int64 [users, k]

GATHERED_BYTES = 1 << 26  # of vectors of items that are named, which are copied before they are ranked


def rank_parts(users: Tensor, parts: Sequence[Tensor], k: int, exclude: Csr | None, allowed: Tensor | None) -> Ranked:
    """Ranks all items, or some of them, for each user; of equal scores the lower index comes first.

    Args:
        users: float [num_users, d].
        parts: The items' vectors, float [n, d] each; items are numbered through all parts. May be memory-mapped.
        k: List length, at most the number of items that are ranked.
        exclude: For every user the items that may not be recommended; their scores are -inf.
        allowed: int64 [n], ascending, the only items that are ranked, a block of them at a time; all items by default.
    """
    best = users.new_empty(users.shape[0], 0), torch.empty(users.shape[0], 0, dtype=torch.int64)
    for first, items, chosen in _blocks(parts, allowed):
        scores, ranked = (torch.cat(both, 1) for both in zip(best, _rank_block(users, first, items, chosen, k, exclude)))
        scores, order = torch.sort(scores, dim=1, descending=True, stable=True)  # earlier blocks hold lower indices
        best = scores[:, :k], ranked.gather(1, order[:, :k])
    return best


def gather(parts: Sequence[Tensor], items: Tensor) -> Tensor:
    """Returns the vectors of items, int64 [n], from all parts: float [n, d]."""
    out = parts[0].new_empty(items.numel(), parts[0].shape[1])
    for first, part in _numbered(parts):
        here = ((items >= first) & (items < first + len(part))).nonzero().squeeze(1)
        out[here] = part[items[here] - first]
    return out


def _numbered(parts: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Yields parts with the number of their first item."""
    return zip(accumulate((len(part) for part in parts), initial=0), parts)


def _blocks(parts: Sequence[Tensor], allowed: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Yields what is ranked at a time: the number of a part's first item, vectors, and their items where they are not all of the part."""
    for first, part in _numbered(parts):
        if allowed is None:
            yield first, part, None
            continue
        own = allowed[(allowed >= first) & (allowed < first + len(part))]
        for chosen in own.split(max(1, GATHERED_BYTES // (part.element_size() * max(1, part.shape[1])))):
            yield first, part[chosen - first], chosen


def _rank_block(users: Tensor, first: int, items: Tensor, chosen: Tensor | None, k: int, exclude: Csr | None) -> Ranked:
    """Returns the best scores of one block [users, at most k] with the items' indices; see `_blocks`."""
    count = min(k, items.shape[0])
    if exclude is not None and count:
        if chosen is None:
            inside = (exclude.columns >= first) & (exclude.columns < first + items.shape[0])
            places = exclude.columns - first
        else:
            places = torch.searchsorted(chosen, exclude.columns).clamp_(max=chosen.numel() - 1)
            inside = chosen[places] == exclude.columns
        exclude = Csr.from_pairs(exclude.rows[inside], places[inside], exclude.num_rows, items.shape[0])
    scores, ranked = users.new_empty(users.shape[0], count), torch.empty(users.shape[0], count, dtype=torch.int64)
    for rows, of_block, best in top_k(users, items, count, exclude) if count else ():
        scores[rows], ranked[rows] = of_block, best + first if chosen is None else chosen[best]
    return scores, ranked
