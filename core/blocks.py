"""Samples blocks: the part of the train graph that a batch's vectors depend on, with weights that keep every sum unbiased.

Level 0 holds the users and items whose vectors are wanted. Hop h reads level h + 1 and gives level h: every user at level h has up to
`fan_out` of its items at level h + 1, and every item at level h has up to `fan_out` of its users there. A level's rows are a prefix of
the next level's rows, so one list of users and one list of items name all rows. Hops are sampled independently of each other, also for a
node that several hops reach: the expectation of several layers of sampled sums is then that of the full sums. This holds for linear
layers; normalisations and losses after them are not linear.
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
    """Holds sampled neighbours of some nodes of one side.

    Attributes:
        pointers: int64 [n + 1]; they delimit each node's run of neighbours, in the order in which the nodes were given.
        ids: int64 [num_edges], dataset indices of the neighbours, which belong to the other side.
        weights: float32 [num_edges], Ã's entry times (degree / number of sampled neighbours).
    """

    pointers: Tensor
    ids: Tensor
    weights: Tensor


def sample_neighbours(pointers: Tensor, columns: Tensor, weights: Tensor, rows: Tensor, fan_out: int, *keys: int | Tensor) -> Neighbours:
    """Samples neighbours of rows of a weighted CSR matrix, and scales the weights by degree / number of sampled neighbours.

    Args:
        pointers, columns, weights: The matrix: int64 [num_rows + 1], ids of the neighbours [num_edges], float32 [num_edges].
        rows: int64 [n], the rows to sample.
        fan_out: The largest number of neighbours for a row; -1 takes all.
        keys: Keys of the random draw, as in `sample_edges`.
    """
    out, edges = sample_edges(pointers, rows, fan_out, *keys)
    counts = out.diff()
    degrees = pointers.index_select(0, rows + 1) - pointers.index_select(0, rows)
    scale = (degrees / counts.clamp(min=1)).float()
    scaled = weights.index_select(0, edges).mul_(torch.repeat_interleave(scale, counts))
    return Neighbours(out, columns.index_select(0, edges).long(), scaled)


def neighbour_keys(sides: int | Tensor, ids: Tensor, seed: int, step: int, hop: int) -> tuple[int | Tensor, ...]:
    """Returns the keys of the random draw of some nodes' neighbours; they do not depend on where the nodes are stored.

    Args:
        sides: USERS or ITEMS: one for all nodes, or int64 [n] with one for each.
        ids: int64 [n], dataset indices of the nodes.
        seed: Seed of the run.
        step: Number of the step since the start of training.
        hop: The hop that draws.
    """
    return STREAM_NEIGHBOUR, seed, step, hop, sides, ids


def graph_sampler(graph: BipartiteGraph, fan_outs: list[int], seed: int, step: int) -> "Sampler":
    """Returns a sampler of a graph that is in memory.

    Args:
        graph: The train graph.
        fan_outs: The largest number of neighbours for a node, by hop; -1 takes all.
        seed, step: As in `neighbour_keys`.
    """

    def sample(users: Tensor, items: Tensor, hop: int) -> tuple[Neighbours, Neighbours]:
        sides = ((USERS, graph.users, graph.user_weights, users), (ITEMS, graph.items, graph.item_weights, items))
        neighbours = [
            sample_neighbours(csr.pointers, csr.columns, weights, rows, fan_outs[hop], *neighbour_keys(side, rows, seed, step, hop))
            for side, csr, weights, rows in sides
        ]
        return neighbours[0], neighbours[1]

    return sample


# From (users, items, hop) to the neighbours of the users and of the items; a hop needs one call, and so one request to a server.
Sampler = Callable[[Tensor, Tensor, int], tuple[Neighbours, Neighbours]]


def without_pairs(sampler: Sampler, users: Tensor, items: Tensor, num_items: int) -> Sampler:
    """Returns a sampler that draws as `sampler` does and then leaves out given pairs, in both directions.

    A neighbour is drawn with the same probability whether others are left out or not, so the remaining weights stay as they are, and a
    sum is unbiased for Ã with the pairs' entries at zero. The degrees in Ã are those of the whole graph, as at inference.

    Args:
        sampler: Draws the neighbours.
        users, items: int64 [n], the pairs' dataset indices.
        num_items: The number of items in the catalog.
    """
    excluded = torch.unique(users * num_items + items)

    def without_excluded(drawn: Neighbours, keys: Tensor) -> Neighbours:
        kept = ~torch.isin(keys, excluded)
        num_kept_before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
        return Neighbours(num_kept_before[drawn.pointers], drawn.ids[kept], drawn.weights[kept])

    def sample(users: Tensor, items: Tensor, hop: int) -> tuple[Neighbours, Neighbours]:
        of_users, of_items = sampler(users, items, hop)
        user_keys = torch.repeat_interleave(users, of_users.pointers.diff()) * num_items + of_users.ids
        item_keys = of_items.ids * num_items + torch.repeat_interleave(items, of_items.pointers.diff())
        return without_excluded(of_users, user_keys), without_excluded(of_items, item_keys)

    return sample


@dataclass(frozen=True)
class Hop:
    """Holds one direction of one hop: the weighted matrix from the next level's rows to a level's rows, and its transpose.

    Attributes:
        rows, weights: The matrix of the forward pass, [rows of the level, rows of the next level of the other side], float32 weights.
        back_rows, back_weights: The transposed matrix, for the backward pass.
    """

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
    """Collects distinct ids in the order in which they are added."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def add(self, ids: Tensor) -> Tensor:
        """Appends the ids that are not there yet, ascending; returns the place of each of `ids` in the collection, int64 [n]."""
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
    """Propagates over sampled neighbours: a `Propagation` that gives the vectors of level 0.

    Attributes:
        users, items: int64, dataset indices of all rows; a level's rows are the first `num_users[level]` and `num_items[level]`.
        num_users, num_items: The number of users and of items at every level, from 0 to the number of hops.
        users_of, items_of: For every hop the sums into users and the sums into items.
    """

    users: Tensor
    items: Tensor
    num_users: list[int]
    num_items: list[int]
    users_of: list[Hop]
    items_of: list[Hop]

    @staticmethod
    def sample(sampler: Sampler, users: Tensor, items: Tensor, num_hops: int) -> "Blocks":
        """Samples hop after hop, with one call of the sampler for each.

        Args:
            sampler: Draws the neighbours of a level's users and items, with its own fan-outs.
            users, items: int64, distinct dataset indices of level 0.
            num_hops: The number of hops.
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
        """Returns the weights, float32 [n], that hop 0 gives to items in users' sums; 0 where an item was not drawn.

        Args:
            users, items: int64 [n], rows of level 0.
        """
        hop = self.users_of[0]
        keys, order = (hop.rows.rows * hop.rows.num_columns + hop.rows.columns).sort()
        wanted = users * hop.rows.num_columns + items
        at = torch.searchsorted(keys, wanted).clamp_(max=max(keys.numel() - 1, 0))
        return torch.where(keys[at] == wanted, hop.weights[order[at]], 0.0)

    def to_users(self, x: Tensor, hop: int = 0) -> Tensor:
        """Returns the sums over their items' rows for the users at level `hop`; `x` holds the items at level `hop` + 1 or deeper."""
        return _sum(self.users_of[hop], x[: self.num_items[hop + 1]])

    def to_items(self, x: Tensor, hop: int = 0) -> Tensor:
        """Returns the sums over their users' rows for the items at level `hop`; `x` holds the users at level `hop` + 1 or deeper."""
        return _sum(self.items_of[hop], x[: self.num_users[hop + 1]])

    def users_at(self, x: Tensor, level: int) -> Tensor:
        """Returns the rows of the users at `level`; `x` holds those at the same or a deeper level."""
        return x[: self.num_users[level]]

    def items_at(self, x: Tensor, level: int) -> Tensor:
        """Returns the rows of the items at `level`; `x` holds those at the same or a deeper level."""
        return x[: self.num_items[level]]

    def to(self, device: torch.device | str) -> "Blocks":
        """Moves the hops to a device; the lists of ids stay where they are."""
        return Blocks(
            self.users, self.items, self.num_users, self.num_items,
            [h.to(device) for h in self.users_of], [h.to(device) for h in self.items_of],
        )  # fmt: skip


def append_distinct(ids: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """Appends to distinct ids those of `more` that are not among them; returns all ids and the place of each of `more`, int64."""
    nodes = _Nodes(ids)
    places = nodes.add(more)
    return nodes.ids, places


def _sum(hop: Hop, x: Tensor) -> Tensor:
    return NeighbourSum.apply(x, hop.rows, hop.weights, hop.back_rows, hop.back_weights)
