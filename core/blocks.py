"""Sampled blocks: the part of the train graph that a batch's vectors depend on, with weights that keep every sum unbiased.

Level 0 holds the wanted users and items. Hop h reads level h + 1 and gives level h: every user at level h has up to `fan_out` of its
items at level h + 1, every item of its users. A level's rows are a prefix of the next one's, so one list of users and one of items name
all rows. Hops are sampled independently of each other, also for a node that several hops reach: the expectation of a product of
sampled sums is then the product of the full ones (for what is linear; normalisations and losses after it are not).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .graph import BipartiteGraph, Csr, NeighbourSum
from .sampling import STREAM_NEIGHBOUR, sample_edges
from .sides import ITEMS, USERS


@dataclass(frozen=True)
class Neighbours:
    """Sampled neighbours of some nodes of one side.

    Attributes:
        pointers: int64 [n + 1], a run of neighbours for every node, in the order asked for.
        ids: int64 [edges], dataset indices of the neighbours (of the other side).
        weights: float32 [edges], Ã's entry times degree / sampled neighbours.
    """

    pointers: Tensor
    ids: Tensor
    weights: Tensor


def sample_neighbours(pointers: Tensor, columns: Tensor, weights: Tensor, rows: Tensor, fan_out: int, *keys: int | Tensor) -> Neighbours:
    """Samples rows of a CSR matrix with weights, and scales the weights by degree / sampled neighbours.

    Args:
        pointers, columns, weights: The matrix: int64 [num_rows + 1], ids of the neighbours [num_edges], float32 [num_edges].
        rows: int64 [n].
        fan_out: Neighbours a row, -1 for all.
        keys: Of the random draw, as in `sample_edges`.
    """
    out, edges = sample_edges(pointers, rows, fan_out, *keys)
    counts = out.diff()
    degrees = pointers.index_select(0, rows + 1) - pointers.index_select(0, rows)
    scale = (degrees / counts.clamp(min=1)).float()
    scaled = weights.index_select(0, edges).mul_(torch.repeat_interleave(scale, counts))
    return Neighbours(out, columns.index_select(0, edges).long(), scaled)


def neighbour_keys(sides: int | Tensor, ids: Tensor, seed: int, step: int, hop: int) -> tuple[int | Tensor, ...]:
    """The keys of the neighbours drawn for some nodes: a function of seed, step, hop and dataset index, wherever the nodes are stored.

    Args:
        sides: USERS or ITEMS, for all nodes or one for each, int64 [n].
        ids: int64 [n], dataset indices.
        step: Step since the start of training.
    """
    return STREAM_NEIGHBOUR, seed, step, hop, sides, ids


def graph_sampler(graph: BipartiteGraph, fan_outs: list[int], seed: int, step: int) -> "Sampler":
    """A sampler of a graph that is in memory.

    Args:
        fan_outs: Neighbours a row by hop, -1 for all.
    """

    def sample(users: Tensor, items: Tensor, hop: int) -> tuple[Neighbours, Neighbours]:
        sides = ((USERS, graph.users, graph.user_weights, users), (ITEMS, graph.items, graph.item_weights, items))
        found = [
            sample_neighbours(csr.pointers, csr.columns, weights, rows, fan_outs[hop], *neighbour_keys(side, rows, seed, step, hop))
            for side, csr, weights, rows in sides
        ]
        return found[0], found[1]

    return sample


# (users, items, hop) -> neighbours of both: one request for a hop.
Sampler = Callable[[Tensor, Tensor, int], tuple[Neighbours, Neighbours]]


def without_pairs(sampler: Sampler, users: Tensor, items: Tensor, num_items: int) -> Sampler:
    """A sampler whose neighbours leave out some pairs, in both directions.

    A neighbour is drawn with the same probability whether others are left out or not, so the remaining weights stay as they are, and a
    sum is unbiased for Ã with the pairs' entries at zero. The degrees in Ã are those of the whole graph, as at inference.

    Args:
        users, items: int64 [n], the pairs' dataset indices.
    """
    excluded = torch.unique(users * num_items + items)

    def keep(found: Neighbours, keys: Tensor) -> Neighbours:
        kept = ~torch.isin(keys, excluded)
        before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
        return Neighbours(before[found.pointers], found.ids[kept], found.weights[kept])

    def sample(users: Tensor, items: Tensor, hop: int) -> tuple[Neighbours, Neighbours]:
        of_users, of_items = sampler(users, items, hop)
        user_keys = torch.repeat_interleave(users, of_users.pointers.diff()) * num_items + of_users.ids
        item_keys = of_items.ids * num_items + torch.repeat_interleave(items, of_items.pointers.diff())
        return keep(of_users, user_keys), keep(of_items, item_keys)

    return sample


@dataclass(frozen=True)
class Hop:
    """One direction of one hop: rows of a level from rows of the next one, and the transposed matrix for the backward pass."""

    rows: Csr
    weights: Tensor
    back_rows: Csr
    back_weights: Tensor

    @staticmethod
    def of(pointers: Tensor, positions: Tensor, weights: Tensor, num_columns: int) -> "Hop":
        rows = Csr(pointers, positions, num_columns)
        back_rows, order = rows.transpose()
        return Hop(rows, weights, back_rows, weights.index_select(0, order))

    def to(self, device: torch.device | str) -> "Hop":
        return Hop(self.rows.to(device), self.weights.to(device), self.back_rows.to(device), self.back_weights.to(device))


class _Nodes:
    """Distinct ids in the order they were added."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def add(self, ids: Tensor) -> Tensor:
        """Appends the ids that are not there yet, ascending; where each of `ids` stands, int64."""
        unique, inverse = torch.unique(ids, return_inverse=True)
        count, is_new = self.ids.numel(), torch.ones_like(unique, dtype=torch.bool)
        places = torch.zeros_like(unique)
        if count and unique.numel():
            known, order = self.ids.sort()
            at = torch.searchsorted(known, unique).clamp_(max=count - 1)
            is_new, places = known[at] != unique, order[at]
        new = unique[is_new]
        places[is_new] = torch.arange(count, count + new.numel(), device=ids.device)
        self.ids = torch.cat([self.ids, new])
        return places.index_select(0, inverse)


@dataclass(frozen=True)
class Blocks:
    """Hops over sampled neighbours; a `Propagation` whose vectors are those of level 0.

    Attributes:
        users, items: int64, dataset indices of all rows; a level's rows are the first `num_users[level]` and `num_items[level]`.
        num_users, num_items: Rows by level, the number of hops + 1 entries.
        users_of, items_of: By hop, the sums into users and into items.
    """

    users: Tensor
    items: Tensor
    num_users: list[int]
    num_items: list[int]
    users_of: list[Hop]
    items_of: list[Hop]

    @staticmethod
    def sample(sampler: Sampler, users: Tensor, items: Tensor, num_hops: int) -> "Blocks":
        """Samples hop after hop, one request each.

        Args:
            sampler: Gives the neighbours of a level's users and items; the fan-outs are its own.
            users, items: int64, distinct dataset indices: level 0.
            num_hops: Hops.
        """
        of_users, of_items = _Nodes(users), _Nodes(items)
        num_users, num_items = [users.numel()], [items.numel()]
        users_of, items_of = [], []
        for hop in range(num_hops):
            to_users, to_items = sampler(of_users.ids, of_items.ids, hop)
            places = of_items.add(to_users.ids), of_users.add(to_items.ids)
            num_users.append(of_users.ids.numel())
            num_items.append(of_items.ids.numel())
            users_of.append(Hop.of(to_users.pointers, places[0], to_users.weights, num_items[-1]))
            items_of.append(Hop.of(to_items.pointers, places[1], to_items.weights, num_users[-1]))
        return Blocks(of_users.ids, of_items.ids, num_users, num_items, users_of, items_of)

    def entries(self, users: Tensor, items: Tensor) -> Tensor:
        """The weights of items in users' sums at hop 0, 0 where they were not drawn: float32 [n], from int64 [n] rows of level 0."""
        hop = self.users_of[0]
        keys, order = (hop.rows.rows * hop.rows.num_columns + hop.rows.columns).sort()
        wanted = users * hop.rows.num_columns + items
        at = torch.searchsorted(keys, wanted).clamp_(max=max(keys.numel() - 1, 0))
        return torch.where(keys[at] == wanted, hop.weights[order[at]], 0.0)

    def to_users(self, x: Tensor, hop: int = 0) -> Tensor:
        """Items at level hop + 1 or deeper -> users at level hop."""
        return _sum(self.users_of[hop], x[: self.num_items[hop + 1]])

    def to_items(self, x: Tensor, hop: int = 0) -> Tensor:
        """Users at level hop + 1 or deeper -> items at level hop."""
        return _sum(self.items_of[hop], x[: self.num_users[hop + 1]])

    def users_at(self, x: Tensor, level: int) -> Tensor:
        """The users of a level, from those of the same or a deeper one."""
        return x[: self.num_users[level]]

    def items_at(self, x: Tensor, level: int) -> Tensor:
        """The items of a level, from those of the same or a deeper one."""
        return x[: self.num_items[level]]

    def to(self, device: torch.device | str) -> "Blocks":
        """The same blocks on a device; the lists of ids stay where they are."""
        return Blocks(
            self.users, self.items, self.num_users, self.num_items,
            [h.to(device) for h in self.users_of], [h.to(device) for h in self.items_of],
        )  # fmt: skip


def append_distinct(ids: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct ids with those of `more` that are not among them behind, and where each of `more` stands; int64."""
    nodes = _Nodes(ids)
    places = nodes.add(more)
    return nodes.ids, places


def _sum(hop: Hop, x: Tensor) -> Tensor:
    return NeighbourSum.apply(x, hop.rows, hop.weights, hop.back_rows, hop.back_weights)
