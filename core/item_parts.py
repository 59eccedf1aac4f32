"""Ranks items that lie in parts, those of a bundle and those that were added to it, one part after the other.

A product of matrices may differ in its last bits with the number of its columns. One product over all items would so change the scores of
items that have been there before others were added; a product for each part does not.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from .graph import Csr
from .top_k import top_k, transposed_items

Ranked = tuple[Tensor, Tensor]  # scores [users, k] in descending order, and item indices, int64 [users, k]

GATHERED_BYTES = 1 << 26  # of vectors of items that are named, which are copied before they are ranked
TRANSPOSED_BYTES = 1 << 28  # the largest vectors of which a transposed copy is kept
LONE_USERS = 2  # the most users of a request for whom a product with the transposed vectors is faster


class ItemPart:
    """Holds the vectors of some items.

    Args:
        vectors: float [n, d]; may be memory-mapped.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self._transposed: Tensor | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def transposed(self, num_users: int) -> Tensor | None:
        """Returns the vectors as `transposed_items` does, for a request of one user or two, and None for others and for large parts.

        The first such request makes a copy, which is kept: one user's product with it takes a third to a half of the time. It is not left
        to a later request, since another product rounds otherwise, and the same request has to have the same scores.
        """
        if num_users > LONE_USERS or self.vectors.numel() * self.vectors.element_size() > TRANSPOSED_BYTES:
            return None
        if self._transposed is None:
            self._transposed = transposed_items(self.vectors)
        return self._transposed


def rank_parts(users: Tensor, parts: Sequence[ItemPart], k: int, exclude: Csr | None, allowed: Tensor | None) -> Ranked:
    """Ranks all items, or some of them, for each user; of equal scores the lower index comes first.

    Args:
        users: float [num_users, d].
        parts: The items' vectors; items are numbered through all parts.
        k: List length, at most the number of items that are ranked.
        exclude: For every user the items that may not be recommended; their scores are -inf.
        allowed: int64 [n], ascending, the only items that are ranked, a block of them at a time; all items by default.
    """
    best = users.new_empty(users.shape[0], 0), torch.empty(users.shape[0], 0, dtype=torch.int64)
    for first, block, chosen in _blocks(parts, allowed):
        scores, ranked = (torch.cat(both, 1) for both in zip(best, _rank_block(users, first, block, chosen, k, exclude)))
        scores, order = torch.sort(scores, dim=1, descending=True, stable=True)  # earlier blocks hold lower indices
        best = scores[:, :k], ranked.gather(1, order[:, :k])
    return best


def gather(parts: Sequence[ItemPart], items: Tensor) -> Tensor:
    """Returns the vectors of items, int64 [n], from all parts: float [n, d]."""
    out = parts[0].vectors.new_empty(items.numel(), parts[0].vectors.shape[1])
    for first, part in _numbered(parts):
        here = ((items >= first) & (items < first + len(part))).nonzero().squeeze(1)
        out[here] = part.vectors[items[here] - first]
    return out


def _numbered(parts: Sequence[ItemPart]) -> Iterator[tuple[int, ItemPart]]:
    """Yields parts with the number of their first item."""
    return zip(accumulate((len(part) for part in parts), initial=0), parts)


def _blocks(parts: Sequence[ItemPart], allowed: Tensor | None) -> Iterator[tuple[int, ItemPart, Tensor | None]]:
    """Yields what is ranked at a time: the number of a part's first item, a block, and its items where they are not all of the part."""
    for first, part in _numbered(parts):
        if allowed is None:
            yield first, part, None
            continue
        own = allowed[(allowed >= first) & (allowed < first + len(part))]
        for chosen in own.split(max(1, GATHERED_BYTES // (part.vectors.element_size() * max(1, part.vectors.shape[1])))):
            yield first, ItemPart(part.vectors[chosen - first]), chosen


def _rank_block(users: Tensor, first: int, block: ItemPart, chosen: Tensor | None, k: int, exclude: Csr | None) -> Ranked:
    """Returns the best scores of one block [users, at most k] with the items' indices; see `_blocks`."""
    count = min(k, len(block))
    if exclude is not None and count:
        if chosen is None:
            exclude = exclude.between(first, first + len(block))
        else:
            places = torch.searchsorted(chosen, exclude.columns).clamp_(max=chosen.numel() - 1)
            inside = chosen[places] == exclude.columns
            exclude = Csr.from_pairs(exclude.rows[inside], places[inside], exclude.num_rows, len(block))
    scores, ranked = users.new_empty(users.shape[0], count), torch.empty(users.shape[0], count, dtype=torch.int64)
    transposed = block.transposed(len(users)) if chosen is None else None  # named items are gathered anew for each request
    for rows, of_block, best in top_k(users, block.vectors, count, exclude, transposed=transposed) if count else ():
        scores[rows], ranked[rows] = of_block, best + first if chosen is None else chosen[best]
    return scores, ranked
