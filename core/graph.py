"""Holds the user-item graph in memory, and propagates over it with normalised weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .autograd import Context, Gradients

EDGES_AT_A_TIME = 1 << 13  # 2 MiB of 64-d rows stay in a CPU's caches: with 2**18 edges at a time it took 16 times as long
ROWS_A_BLOCK = 1 << 16  # of `Csr.blocks`


@dataclass(frozen=True)
class Csr:
    """Holds a sparse matrix of ones as rows of sorted column indices (compressed sparse rows).

    Attributes:
        pointers: int64 [num_rows + 1].
        columns: int64 (int32 where memory-mapped) [num_edges], ascending within a row.
        num_columns: Number of columns.
    """

    pointers: Tensor
    columns: Tensor
    num_columns: int

    @property
    def num_rows(self) -> int:
        return self.pointers.numel() - 1

    @property
    def degrees(self) -> Tensor:
        """Returns the number of edges of every row, int64 [num_rows]."""
        return self.pointers.diff()

    @property
    def rows(self) -> Tensor:
        """Returns the row of every edge, int64 [num_edges]."""
        return torch.repeat_interleave(torch.arange(self.num_rows, device=self.columns.device), self.degrees)

    @staticmethod
    def from_pairs(rows: Tensor, columns: Tensor, num_rows: int, num_columns: int) -> "Csr":
        """Builds the matrix from int64 pairs in any order; a pair that occurs twice stays twice."""
        order = torch.argsort(rows * num_columns + columns)
        pointers = torch.zeros(num_rows + 1, dtype=torch.int64, device=rows.device)
        pointers[1:] = torch.bincount(rows, minlength=num_rows).cumsum(0)
        return Csr(pointers, columns[order].contiguous(), num_columns)

    def transpose(self) -> tuple["Csr", Tensor]:
        """Returns the transposed matrix, and the place of each of its edges in this matrix, int64 [num_edges]."""
        order = torch.argsort(self.columns.int(), stable=True)  # indices are below 2**31; half the bytes sort in half the time
        pointers = torch.zeros(self.num_columns + 1, dtype=torch.int64, device=self.columns.device)
        pointers[1:] = torch.bincount(self.columns, minlength=self.num_columns).cumsum(0)
        return Csr(pointers, self.rows.index_select(0, order), self.num_rows), order

    def select(self, rows: Tensor) -> "Csr":
        """Returns the given rows, int64 [n], as a matrix of n rows."""
        first = self.pointers.index_select(0, rows)
        degrees = self.pointers.index_select(0, rows + 1) - first  # `self.degrees` would compute those of all rows
        pointers = torch.cat([degrees.new_zeros(1), degrees.cumsum(0)])
        edges = torch.arange(int(pointers[-1]), device=rows.device) + torch.repeat_interleave(first - pointers[:-1], degrees)
        return Csr(pointers, self.columns.index_select(0, edges).long(), self.num_columns)

    def between(self, first: int, last: int) -> "Csr":
        """Returns the columns from `first` to `last` - 1 as a matrix of these columns, in memory."""
        inside = (self.columns >= first) & (self.columns < last)
        pointers = self.pointers.clone()
        pointers[1:] = torch.cat([inside.new_zeros(1, dtype=torch.int64), inside.cumsum(0)])[self.pointers[1:]]
        return Csr(pointers, self.columns[inside].long() - first, last - first)

    def blocks(self) -> Iterator["Csr"]:
        """Yields matrices of consecutive rows, so that not all edges are in memory at once where they are memory-mapped."""
        for rows in torch.arange(self.num_rows, device=self.columns.device).split(ROWS_A_BLOCK):
            yield self.select(rows)

    def to(self, device: torch.device | str) -> "Csr":
        return Csr(self.pointers.to(device), self.columns.to(device), self.num_columns)


class NeighbourSum(torch.autograd.Function):
    """Computes out[r] = Σ_{c in row r} w_rc x[c]; the backward pass is the same sum over the transposed rows.

    `embedding_bag` is the fastest exact gather-and-sum that torch has on a CPU (benchmarks/README.md), and runs on any device.
    Weights that require a gradient get <grad[r], x[c]>. The transposed weights get none, even where they were made from the weights.
    """

    @staticmethod
    def forward(ctx: Context, x: Tensor, rows: Csr, weights: Tensor, back_rows: Csr, back_weights: Tensor) -> Tensor:
        ctx.back, ctx.rows = (back_rows, back_weights), rows
        if ctx.needs_input_grad[2]:
            ctx.save_for_backward(x, weights)
        return weighted_sum(x, rows, weights)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Gradients:
        grad, to_weights = grad.contiguous(), None
        if ctx.needs_input_grad[2]:
            x, weights = ctx.saved_tensors
            to_weights = edge_products(grad, x, ctx.rows).to(weights.dtype)
        to_x = weighted_sum(grad, *ctx.back) if ctx.needs_input_grad[0] else None
        return to_x, None, to_weights, None, None


def weighted_sum(x: Tensor, rows: Csr, weights: Tensor) -> Tensor:
    """Computes Σ_{c in row r} w_rc x[c], [num_rows, d], from x [num_columns, d] and a weight for every edge [num_edges]."""
    return F.embedding_bag(rows.columns, x, rows.pointers, mode="sum", include_last_offset=True, per_sample_weights=weights.to(x.dtype))


def edge_products(x: Tensor, y: Tensor, rows: Csr) -> Tensor:
    """Computes <x[r], y[c]> for every edge (r, c), [num_edges], a chunk of edges at a time."""
    chunks = zip(rows.rows.split(EDGES_AT_A_TIME), rows.columns.split(EDGES_AT_A_TIME))
    products = [(x.index_select(0, r) * y.index_select(0, c)).sum(1) for r, c in chunks]
    return torch.cat(products) if products else x.new_zeros(0)


def degree_power(degrees: Tensor, exponent: float) -> Tensor:
    """Computes degree^exponent, float64 [n], with 0 where the degree is 0."""
    return torch.where(degrees > 0, degrees.clamp(min=1).double() ** exponent, 0.0)


@dataclass(frozen=True)
class BipartiteGraph:
    """Holds the train interactions in both directions, weighted by Ã = D_U^-1/2 A D_I^-1/2 (docs/method.md, notation).

    Attributes:
        users: The items of each user.
        items: The users of each item.
        user_weights: Ã's entry for every edge in the order of `users`, float32 [num_edges].
        item_weights: Ã's entry for every edge in the order of `items`, float32 [num_edges].
    """

    users: Csr
    items: Csr
    user_weights: Tensor
    item_weights: Tensor

    @staticmethod
    def from_pairs(users: Tensor, items: Tensor, num_users: int, num_items: int) -> "BipartiteGraph":
        """Builds the graph from the train pairs, int64 [num_edges] dataset indices in any order."""
        by_user = Csr.from_pairs(users, items, num_users, num_items)
        by_item = Csr.from_pairs(items, users, num_items, num_users)
        user_scale, item_scale = (c.degrees.clamp(min=1).double().rsqrt() for c in (by_user, by_item))
        user_weights = (user_scale[by_user.rows] * item_scale[by_user.columns]).float()
        item_weights = (item_scale[by_item.rows] * user_scale[by_item.columns]).float()
        return BipartiteGraph(by_user, by_item, user_weights, item_weights)

    @property
    def num_users(self) -> int:
        return self.users.num_rows

    @property
    def num_items(self) -> int:
        return self.items.num_rows

    def to(self, device: torch.device | str) -> "BipartiteGraph":
        return BipartiteGraph(self.users.to(device), self.items.to(device), self.user_weights.to(device), self.item_weights.to(device))

    def entries(self, users: Tensor, items: Tensor) -> Tensor:
        """Returns Ã's entries at train pairs, float32 [n], from the pairs' users and items, int64 [n]."""
        degrees = [c.pointers[rows + 1] - c.pointers[rows] for c, rows in ((self.users, users), (self.items, items))]
        return (degrees[0].double() * degrees[1].double()).rsqrt().float()

    def to_users(self, x: Tensor, hop: int = 0) -> Tensor:
        """Computes Ã x, [num_users, d], from x [num_items, d]; every hop is the same."""
        return NeighbourSum.apply(x, self.users, self.user_weights, self.items, self.item_weights)

    def to_items(self, x: Tensor, hop: int = 0) -> Tensor:
        """Computes Ã^T x, [num_items, d], from x [num_users, d]; every hop is the same."""
        return NeighbourSum.apply(x, self.items, self.item_weights, self.users, self.user_weights)

    def users_at(self, x: Tensor, level: int) -> Tensor:
        """Returns `x`: the whole graph has all users at every level."""
        return x

    def items_at(self, x: Tensor, level: int) -> Tensor:
        """Returns `x`: the whole graph has all items at every level."""
        return x


class Propagation(Protocol):
    """Describes what models propagate over: the whole graph, or sampled blocks of it (`core/blocks.py`).

    Level 0 holds the rows whose vectors are wanted, and level h + 1 holds the rows that hop h reads. The whole graph has all rows at every
    level.
    """

    def entries(self, users: Tensor, items: Tensor) -> Tensor:
        """Returns the weights, float32 [n], of train pairs' items in their users' sums at hop 0.

        Args:
            users, items: int64 [n], the pairs as rows of level 0.
        """

    def to_users(self, x: Tensor, hop: int = 0) -> Tensor:
        """Computes Ã x for the users at level `hop`; `x` holds the items at level `hop` + 1 or deeper."""

    def to_items(self, x: Tensor, hop: int = 0) -> Tensor:
        """Computes Ã^T x for the items at level `hop`; `x` holds the users at level `hop` + 1 or deeper."""

    def users_at(self, x: Tensor, level: int) -> Tensor:
        """Returns the rows of the users at `level`; `x` holds those at the same or a deeper level."""

    def items_at(self, x: Tensor, level: int) -> Tensor:
        """Returns the rows of the items at `level`; `x` holds those at the same or a deeper level."""


def light_propagation(graph: Propagation, users: Tensor, items: Tensor, num_layers: int) -> tuple[Tensor, Tensor]:
    """Computes LightGCN's vectors: the mean of layers 0 to `num_layers` (He et al. 2020, eq. 3-4).

    Args:
        graph: The graph to propagate over.
        users, items: Layer 0, [n, d] and [m, d], rows of level `num_layers` or deeper.
        num_layers: The number of layers beside layer 0.

    Returns:
        User and item vectors, rows of level 0.
    """
    user_sum, item_sum = graph.users_at(users, 0), graph.items_at(items, 0)
    for hop in reversed(range(num_layers)):
        users, items = graph.to_users(items, hop), graph.to_items(users, hop)
        user_sum, item_sum = user_sum + graph.users_at(users, 0), item_sum + graph.items_at(items, 0)
    return user_sum / (num_layers + 1), item_sum / (num_layers + 1)
