"""Finds the k items of largest dot product exactly, for blocks of users, in bounded memory (docs/method.md 5)."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .graph import Csr
from .histories import HistoryScores, history_rows

Block = tuple[slice, Tensor, Tensor]  # users, their scores [rows, k] in descending order, and item indices, int64 [rows, k]

CACHED_SCORES = 1 << 22  # the largest number of scores in a block: 16 MiB stay near a CPU's caches
WIDE_ROW = 1 << 15  # scores of a user from which on it is faster to take maxima first
FEW_USERS = 64  # for fewer users the norms of all items, which the maxima of groups need, take too long
GROUP = 8  # consecutive items with one maximum
MOST_COVERED = 8  # a maximum over groups, by which a user's bar is found, covers at most 2 to this power of them
SPARE = 4  # groups that are chosen beyond k, so that nearly every list is certain unless scores tie
LEAST_GROUPS = 16  # for each group that is chosen: in smaller catalogs it is faster to sort out all scores
USERS_A_BLOCK, ITEMS_A_BLOCK = 512, 1024  # 2 MiB of scores, which a core's cache still holds when their maxima are taken
ITEMS_A_CHOICE = 1 << 17  # items whose maxima are kept until the best groups among them are chosen
CROWD = 4  # times as many groups as are chosen may reach a user's bar; where scores tie and more do, all maxima are sorted out
CHOSEN_BYTES = 352  # for each group that is chosen for a user: its items, and the groups that reach the bar while it is chosen
FULL_COLUMNS = 128  # of a product: in one of a multiple of them all columns are rounded alike
GATHERED = 1 << 18  # numbers that are gathered at a time: 1 MiB


def top_k_of_scores(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Finds the k best columns of each row; of equal scores the lower index comes first.

    Args:
        scores: float [rows, columns], -inf where a column is excluded.
        k: At most the number of columns.

    Returns:
        Values [rows, k] in descending order and their columns, int64 [rows, k].
    """
    values, columns = _best_of_rows(scores, min(k + 1, scores.shape[1]))
    tied = (values[:, 1:] == values[:, :-1]).any(1).nonzero().squeeze(1)
    cut = values[:, k:]  # one column, or none where all are wanted
    values, columns = values[:, :k].contiguous(), columns[:, :k].contiguous()
    if tied.numel():
        values[tied], columns[tied] = _by_index(scores[tied], values[tied], columns[tied], cut[tied])
    return values, columns


def _best_of_rows(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k largest values of each row in descending order and their columns, any of those that tie, as torch.topk does.

    Of wide rows a maximum is taken over every group of columns first: the k largest values are in the k groups of largest maxima.
    """
    rows, width = scores.shape
    if width < WIDE_ROW or not k or scores.device.type != "cpu":
        return torch.topk(scores, k, dim=1)
    depth = math.isqrt(width // k)  # so that there are as many maxima as values in the chosen groups
    stride = width // depth
    groups = torch.topk(scores[:, : stride * depth].unflatten(1, (depth, stride)).amax(1), k, dim=1, sorted=False).indices
    columns = (groups[:, None] + torch.arange(0, stride * depth, stride, device=scores.device)[:, None]).flatten(1)
    rest = torch.arange(stride * depth, width, device=scores.device).expand(rows, -1)
    columns = torch.cat([columns, rest], 1)
    values, places = torch.topk(scores.gather(1, columns), k, dim=1)
    return values, columns.gather(1, places)


def _by_index(scores: Tensor, values: Tensor, columns: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the k best columns of rows in which scores tie, the lower index first, as `top_k_of_scores`.

    Args:
        scores: The rows.
        values, columns: Their best k as torch.topk orders them, which keeps any of the scores that tie with the k-th one.
        cut: Of each row the next best score [rows, 1], or nothing [rows, 0].
    """
    k = values.shape[1]
    chosen = (cut == values[:, -1:]).any(1).nonzero().squeeze(1)  # there was such a choice: the lower indices are taken
    if chosen.numel():
        rows, least = scores[chosen], values[chosen, -1:]
        above, equal = rows > least, rows == least
        room = k - above.sum(1, keepdim=True)
        kept = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= room))
        columns[chosen] = kept.nonzero()[:, 1].view(-1, k)
        values[chosen] = rows.gather(1, columns[chosen])
    columns, by_index = columns.sort(1)
    values, by_score = torch.sort(values.gather(1, by_index), dim=1, descending=True, stable=True)
    return values, columns.gather(1, by_score)


def top_k(
    users: Tensor,
    items: Tensor,
    k: int,
    exclude: Csr | None = None,
    memory_mib: int = 256,
    histories: Sequence[HistoryScores] = (),
    transposed: Tensor | None = None,
) -> Iterator[Block]:
    """Ranks the whole catalog by dot product, block by block; of equal scores the lower index comes first.

    Args:
        users: float [num_users, d].
        items: float [num_items, d]; may be memory-mapped.
        k: List length, at most num_items.
        exclude: For every user the items that may not be recommended.
        memory_mib: Bound on a block: about a quarter of it is for scores or their maxima, the rest for what sorts them out.
        histories: Scores from the same users' histories, which are added to the dot products; a block then has whole rows of scores, and
            similarities on their way to the sums come on top (`histories.BLOCK_ENTRIES`).
        transposed: The items once more, as `transposed_items` returns them: read where all scores are sorted out, and faster there for one
            user or two.

    Yields:
        The block's users as a slice, their scores [rows, k], and item indices, int64 [rows, k], best first. Where fewer than k items are
        allowed, the remaining scores are -inf. A user's scores can differ in their last digits with the number of users that are ranked.

    Raises:
        InputError: k is larger than the catalog.
    """
    num_items, users, items = items.shape[0], users.detach(), items.detach()
    if k > num_items:
        raise InputError(f"k={k} is larger than the catalog of {num_items} items; ask for at most {num_items}")
    user_block = min(users.shape[0], USERS_A_BLOCK, memory_mib * 2**20 // 4 // _bytes_of_maxima(items, k))
    is_large = user_block >= FEW_USERS and num_items // GROUP >= LEAST_GROUPS * (k + SPARE + 1)
    if is_large and k and items.shape[1] and items.is_contiguous() and items.device.type == "cpu" and not histories:
        yield from _top_k_by_maxima(users, items, k, exclude, memory_mib, user_block)
    else:
        yield from _top_k_of_rows(users, items, k, exclude, memory_mib, histories, transposed)


def transposed_items(items: Tensor) -> Tensor:
    """Returns items, float [num_items, d], transposed: contiguous, with columns of zeros up to a multiple of `FULL_COLUMNS`.

    The last columns of a product of another width are rounded otherwise, and two items of the same vector could have different scores.
    """
    return _padded(items).T.contiguous()


def _padded(items: Tensor) -> Tensor:
    """Returns a copy of items, float [n, d], with rows of zeros up to a multiple of `FULL_COLUMNS`."""
    out = items.new_zeros(_full(items.shape[0]), items.shape[1])
    out[: items.shape[0]] = items
    return out


def _top_k_of_rows(
    users: Tensor,
    items: Tensor,
    k: int,
    exclude: Csr | None,
    memory_mib: int,
    histories: Sequence[HistoryScores] = (),
    transposed: Tensor | None = None,
) -> Iterator[Block]:
    """Ranks as `top_k`: sorts out the best of all scores of a block."""
    num_items = items.shape[0]
    budget = memory_mib * 2**20 // (4 * items.element_size())  # scores, their sort and the masks
    item_block = min(num_items, _full(max(k, budget // 64)))
    if users.device.type == "cpu":
        budget = min(budget, CACHED_SCORES)
    user_block = max(1, budget // (num_items if histories else item_block))
    blocks = [*_item_blocks(items, item_block, transposed)]
    buffer = users.new_empty(min(user_block, users.shape[0]) * _full(item_block))  # reused: fresh pages would cost as much as the product
    for start in range(0, users.shape[0], user_block):
        rows = slice(start, min(start + user_block, users.shape[0]))
        here = torch.arange(rows.start, rows.stop, device=users.device)
        excluded = exclude.select(here) if exclude is not None else None
        of_histories = history_rows(histories, here)
        best: tuple[Tensor, Tensor] | None = None
        for first, count, parts in blocks:
            scores = _scores(users[rows], parts, buffer)
            scores[:, count:] = -torch.inf
            if of_histories is not None:
                scores[:, :count] += of_histories[:, first : first + count]
            if excluded is not None:
                _exclude(scores, excluded, first)
            values, columns = top_k_of_scores(scores, min(k, count))
            columns = columns + first
            if best is not None:  # earlier blocks hold lower indices and come first, so of equal scores the lower index still comes first
                values, columns = torch.cat([best[0], values], 1), torch.cat([best[1], columns], 1)
                values, at = torch.sort(values, dim=1, descending=True, stable=True)
                values, columns = values[:, :k], columns.gather(1, at[:, :k])
            best = values, columns
        assert best is not None
        yield rows, *best


def _full(num_items: int) -> int:
    """Returns a number of items rounded up to a multiple of `FULL_COLUMNS`."""
    return -(-num_items // FULL_COLUMNS) * FULL_COLUMNS


def _item_blocks(items: Tensor, size: int, transposed: Tensor | None) -> Iterator[tuple[int, int, list[Tensor]]]:
    """Yields blocks of items: the first item of each, the number of its items, and what to multiply users with, [d, n] each.

    The numbers of columns are multiples of `FULL_COLUMNS`: columns of zeros stand after the catalog's last item.
    """
    num_items = items.shape[0]
    for first in range(0, num_items, size):
        last = min(first + size, num_items)
        if transposed is not None:
            yield first, last - first, [transposed[:, first : _full(last)]]
        else:
            rest = (last - first) % FULL_COLUMNS
            full = last - rest if items.device.type == "cpu" else first  # a GPU rounds products of other widths otherwise: one for all
            yield first, last - first, [x.T for x in (items[first:full], _padded(items[full:last])) if len(x)]


def _scores(users: Tensor, parts: list[Tensor], buffer: Tensor) -> Tensor:
    """Multiplies users [n, d] with parts of items, [d, w] each: scores [n, sum of w], in the memory of the buffer."""
    widths = [part.shape[1] for part in parts]
    scores = buffer[: len(users) * sum(widths)].view(len(users), -1)
    for part, out in zip(parts, scores.split(widths, 1)):
        torch.mm(users, part, out=out)
    return scores


def _exclude(scores: Tensor, excluded: Csr, first: int) -> None:
    columns = excluded.columns - first
    inside = (columns >= 0) & (columns < scores.shape[1])
    scores[excluded.rows[inside], columns[inside]] = -torch.inf


class _Memory:
    """Lends tensors by purpose, the same memory each time: fresh pages would cost as much time as what is computed on them."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self._held = dtype, dict[str, Tensor]()

    def __call__(self, purpose: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Returns a tensor whose values are arbitrary; it is valid until the next call with the same purpose."""
        size = torch.Size(shape).numel()
        held = self._held.get(purpose)
        if held is None or held.numel() < size:
            held = self._held[purpose] = torch.empty(size, dtype=dtype or self.dtype)
        return held[:size].view(shape)


class _Masks:
    """Holds the excluded pairs of a block of users, by item."""

    def __init__(self, excluded: Csr) -> None:
        self.items, order = excluded.columns.sort()
        self.users = excluded.rows.index_select(0, order)

    def hide(self, scores: Tensor, first: int) -> None:
        """Sets the scores [items, users] of the excluded pairs to -inf, for the items from `first` on."""
        run = slice(*torch.searchsorted(self.items, torch.tensor([first, first + scores.shape[0]])).tolist())
        places = (self.items[run] - first) * scores.shape[1] + self.users[run]
        scores.view(-1).index_fill_(0, places, -torch.inf)

    def hide_candidates(self, scores: Tensor, groups: Tensor, num_groups: int) -> None:
        """Sets the scores of the excluded pairs to -inf among those of each user's candidates.

        Args:
            scores: [users, count * GROUP], contiguous: of the items of each group.
            groups: int64 [users, count], ascending within a row and distinct.
            num_groups: The number of all groups; items // GROUP is below it.
        """
        keys = (groups + torch.arange(len(groups))[:, None] * num_groups).view(-1)
        wanted = self.items // GROUP + self.users * num_groups
        at = torch.searchsorted(keys, wanted).clamp_(max=keys.numel() - 1)
        is_candidate = keys[at] == wanted
        scores.view(-1).index_fill_(0, (at * GROUP + self.items % GROUP)[is_candidate], -torch.inf)


def _bytes_of_maxima(items: Tensor, k: int) -> int:
    """Returns the bytes that `_top_k_by_maxima` needs for each user of a block."""
    kept = min(ITEMS_A_CHOICE, items.shape[0]) // GROUP  # maxima, and which of them reach the bar
    return items.element_size() * (ITEMS_A_BLOCK + kept * 5 // 4) + (k + SPARE + 1) * CHOSEN_BYTES


def _top_k_by_maxima(users: Tensor, items: Tensor, k: int, exclude: Csr | None, memory_mib: int, user_block: int) -> Iterator[Block]:
    """Ranks as `top_k`, `user_block` users at a time, and sorts out far fewer scores.

    Items are taken in groups of `GROUP`, and of a block of scores only the groups' maxima are kept. A user's k best items lie in the k
    groups of largest maxima; they and `SPARE` more are scored again. Another product rounds otherwise: both together by at most
    d eps ‖u‖ max ‖v‖. A user's list is certain where its k-th score is that much above the maximum of the best group that was left out.
    For the other users, as where many scores tie, all scores are sorted out.
    """
    dim, memory, count = items.shape[1], _Memory(items.dtype), k + SPARE + 1
    largest = max(float(block.norm(dim=1).max()) for block in items.split(ITEMS_A_CHOICE))
    margin = 1.01 * dim * torch.finfo(items.dtype).eps * largest
    for start in range(0, users.shape[0], user_block):
        rows = slice(start, min(start + user_block, users.shape[0]))
        own = users[rows]
        masks = _Masks(exclude.select(torch.arange(rows.start, rows.stop))) if exclude is not None else None
        groups, bound = _best_groups(own, items, count, masks, memory)
        scores, candidates = _candidates(own, items, groups, masks, memory)
        values, places = top_k_of_scores(scores, k)
        ranked = candidates.gather(1, places)
        is_certain = (bound > -torch.inf) & (values[:, -1] > bound + margin * own.norm(dim=1))
        doubtful = (~is_certain).nonzero().squeeze(1)
        if doubtful.numel():
            of_doubtful = exclude.select(rows.start + doubtful) if exclude is not None else None
            for part, part_values, part_ranked in _top_k_of_rows(own[doubtful], items, k, of_doubtful, memory_mib):
                values[doubtful[part]], ranked[doubtful[part]] = part_values, part_ranked
        yield rows, values, ranked


def _best_groups(users: Tensor, items: Tensor, count: int, masks: _Masks | None, memory: _Memory) -> tuple[Tensor, Tensor]:
    """Finds the groups of largest maxima for each of some users.

    Returns:
        The `count` best groups, int64 [n, count], ascending, and the least of their maxima [n], which no other group exceeds. Where fewer
        groups have an item that is not excluded, this bound is -inf, and a group may be there more than once.
    """
    transposed, size, num_groups = users.T.contiguous(), len(users), items.shape[0] // GROUP
    values, groups = users.new_empty(size, 0), torch.empty(size, 0, dtype=torch.int64)
    for begin in range(0, num_groups * GROUP, ITEMS_A_CHOICE):
        end = min(begin + ITEMS_A_CHOICE, num_groups * GROUP)
        covered, padded = _covered((end - begin) // GROUP, count)
        maxima = memory("maxima", padded, size)
        maxima[(end - begin) // GROUP :] = -torch.inf
        for first in range(begin, end, ITEMS_A_BLOCK):
            last = min(first + ITEMS_A_BLOCK, end)
            scores = torch.mm(items[first:last], transposed, out=memory("scores", last - first, size))
            if masks is not None:
                masks.hide(scores, first)
            torch.amax(scores.view(-1, GROUP, size), 1, out=maxima[(first - begin) // GROUP : (last - begin) // GROUP])
        of_choice, chosen = _best_rows(maxima, covered, count, memory)
        values, groups = torch.cat([values, of_choice], 1), torch.cat([groups, chosen + begin // GROUP], 1)
        if begin:
            values, places = torch.topk(values, min(count, values.shape[1]), dim=1, sorted=False)
            groups = groups.gather(1, places)
    return groups.clamp(max=num_groups - 1).sort(1).values, values.amin(1)


def _covered(num_rows: int, count: int) -> tuple[int, int]:
    """Returns how many rows one maximum covers by which the bar for `count` rows is found, and the number of rows padded to its multiple.

    There are at least twice as many such maxima as rows are wanted, or a maximum for each row.
    """
    covered = 1 << min(MOST_COVERED, max(0, (num_rows // (2 * count)).bit_length() - 1))
    return covered, -(-num_rows // covered) * covered


def _best_rows(maxima: Tensor, covered: int, count: int, memory: _Memory) -> tuple[Tensor, Tensor]:
    """Finds the largest rows of each column: values [n, count] and rows, int64 [n, count], in any order.

    A column's bar is the count-th largest of its maxima over `covered` rows: at least `count` rows reach it, and few more do. These alone
    are sorted out.

    Args:
        maxima: float [rows, n].
        covered: How many rows a maximum covers; it divides the number of rows.
        count: How many rows are wanted; all are returned where there are fewer.
    """
    num_rows, size = maxima.shape
    if num_rows <= count:
        return maxima.T, torch.arange(num_rows).expand(size, -1)
    tops = torch.amax(maxima.view(-1, covered, size), 1) if covered > 1 else maxima
    bars = torch.topk(tops.T.contiguous(), count, dim=1, sorted=False).values.amin(1)
    reached = torch.ge(maxima, bars, out=memory("reached", num_rows, size, dtype=torch.bool))
    found = np.flatnonzero(reached.numpy())
    columns = (found % size).astype(np.uint16)
    of_column = np.bincount(columns, minlength=size)
    crowded = (of_column > CROWD * count).nonzero()[0]
    if len(crowded):
        kept = ~np.isin(columns, crowded)
        found, columns, of_column[crowded] = found[kept], columns[kept], 0
    order = np.argsort(columns, kind="stable")  # by column; 16 bits sort in linear time
    width = max(count, int(of_column.max(initial=0)))
    places = torch.from_numpy(np.arange(len(found)) + np.repeat(np.arange(size) * width - (of_column.cumsum() - of_column), of_column))
    of_places = torch.from_numpy(found[order])
    values, rows = maxima.new_full((size, width), -torch.inf), torch.zeros(size, width, dtype=torch.int64)
    values.view(-1)[places], rows.view(-1)[places] = maxima.view(-1)[of_places], of_places // size
    values, chosen = torch.topk(values, count, dim=1, sorted=False)
    rows = rows.gather(1, chosen)
    if len(crowded):
        here = torch.from_numpy(crowded)
        values[here], rows[here] = torch.topk(maxima.T[here], count, dim=1, sorted=False)
    return values, rows


def _candidates(users: Tensor, items: Tensor, groups: Tensor, masks: _Masks | None, memory: _Memory) -> tuple[Tensor, Tensor]:
    """Scores the items of some groups for each user, and the rest: the fewer than `GROUP` items that are in no group.

    One product scores all of a user's candidates, so that items with the same vector have the same score. The rest is filled up to `GROUP`
    columns for that: the last few columns of a product of any other width are rounded otherwise.

    Args:
        groups: int64 [n, count], ascending.

    Returns:
        Scores [n, width], -inf where an item is excluded, and the items, int64; ascending within a row, but for columns that fill up.
    """
    size, num_items, rest = len(groups), items.shape[0], items.shape[0] % GROUP
    if rest:
        groups = torch.cat([groups, torch.full((size, 1), num_items // GROUP)], 1)
    candidates = (groups[:, :, None] * GROUP + torch.arange(GROUP)).flatten(1).clamp_(max=num_items - 1)
    width, dim = candidates.shape[1], items.shape[1]
    scores, step = memory("candidates", size, width), max(1, GATHERED // (width * dim))
    for first in range(0, size, step):
        part = slice(first, min(first + step, size))
        wanted = candidates[part].reshape(-1)
        rows = torch.index_select(items, 0, wanted, out=memory("rows", wanted.numel(), dim)).view(-1, width, dim)
        torch.bmm(users[part, None], rows.transpose(1, 2), out=scores[part, None])
    if masks is not None:
        masks.hide_candidates(scores, groups, -(-num_items // GROUP))
    if rest:
        scores[:, rest - GROUP :] = -torch.inf
    return scores, candidates
