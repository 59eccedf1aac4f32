"""Multiplies with the weighted train interactions D_U^-p A D_I^-q, and compares items by the users that they share."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph import BipartiteGraph, Csr, degree_power, weighted_sum
from ..histories import Similarities
from .factors import Scores

BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Interactions:
    """Holds the train interactions A [num_users, num_items], zeros and ones, for products with scaled rows and columns.

    Attributes:
        graph: The train graph.
        dtype: The dtype of the products.
    """

    graph: BipartiteGraph
    dtype: torch.dtype = torch.float32

    @property
    def num_items(self) -> int:
        return self.graph.num_items

    @property
    def like(self) -> Tensor:
        """Returns an empty tensor of the products' dtype, on the graph's device."""
        return torch.zeros(0, dtype=self.dtype, device=self.graph.user_weights.device)

    def user_scale(self, exponent: float) -> Tensor:
        """Returns the users' degree^exponent, float64 [num_users]."""
        return degree_power(self.graph.users.degrees, exponent)

    def item_scale(self, exponent: float) -> Tensor:
        """Returns the items' degree^exponent, float64 [num_items]."""
        return degree_power(self.graph.items.degrees, exponent)

    def scaled(self, users: Tensor, items: Tensor) -> Scores:
        """Returns diag(users) A diag(items) as products.

        Args:
            users, items: float64 [num_users] and [num_items].
        """
        rows, columns = (scale.to(self.dtype)[:, None] for scale in (users, items))
        return Scores(
            self.num_items,
            lambda x: rows * self._sum(columns * x, self.graph.users),
            lambda y: columns * self._sum(rows * y, self.graph.items),
        )

    def weighted(self, user_exponent: float, item_exponent: float) -> Scores:
        """Returns N = D_U^-a/2 A D_I^-b as products, with a = `user_exponent` and b = `item_exponent`."""
        return self.scaled(self.user_scale(-user_exponent / 2), self.item_scale(-item_exponent))

    def histories(self, item_exponent: float = 0.0) -> Scores:
        """Returns the users' histories D_U^-1/2 A D_I^-c as products: rows of unit length with c = 0."""
        return self.scaled(self.user_scale(-0.5), self.item_scale(-item_exponent))

    def dense_histories(self, item_exponent: float = 0.0) -> Tensor:
        """Returns the same histories as a matrix, [num_users, num_items]."""
        users, items = self.graph.users.rows, self.graph.users.columns
        dense = torch.zeros(self.graph.num_users, self.num_items, dtype=self.dtype, device=items.device)
        dense[users, items] = (self.user_scale(-0.5)[users] * self.item_scale(-item_exponent)[items]).to(self.dtype)
        return dense

    def shared_users(self, user_weights: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yields rows of A^T diag(w) A a block of items at a time: the weights of the users that two items share.

        Args:
            user_weights: w, float64 [num_users].

        Yields:
            The block's items as a slice, and their rows [n, num_items].
        """
        graph, size = self.graph, max(1, BLOCK_BYTES // (8 * (self.graph.num_users + self.num_items)))
        weights = user_weights.to(self.dtype)
        for first in range(0, self.num_items, size):
            block = slice(first, min(first + size, self.num_items))
            ids = torch.arange(block.start, block.stop, device=weights.device)
            chosen = graph.items.select(ids)
            columns = torch.zeros(graph.num_users, ids.numel(), dtype=self.dtype, device=weights.device)
            columns[chosen.columns, chosen.rows] = weights[chosen.columns]
            yield block, self._sum(columns, graph.items).T

    def _sum(self, x: Tensor, rows: Csr) -> Tensor:
        """Computes the sum of x's rows over each row's columns."""
        return weighted_sum(x.contiguous(), rows, torch.ones(rows.columns.numel(), dtype=self.dtype, device=x.device))


def list_bytes(num_items: int, k: int) -> int:
    """Returns the bytes of `ItemLists` with k entries a row, of its products in both directions and of the sorts that make them."""
    return 2 * BLOCK_BYTES + num_items * min(k, num_items) * (12 + 2 * 12 + 5 * 8)


def entry_bytes(num_items: int, k: int) -> int:
    """Returns the bytes of `Similarities` with k entries a row."""
    return num_items * (8 + min(k, num_items) * 8)


@dataclass(frozen=True)
class ItemLists:
    """Holds a sparse matrix of items by items: for each row the columns with the largest values.

    Attributes:
        columns: int64 [num_items, k], largest value first.
        values: [num_items, k]; 0 where a row has fewer.
    """

    columns: Tensor
    values: Tensor

    @staticmethod
    def largest(blocks: Iterator[tuple[slice, Tensor]], k: int) -> "ItemLists":
        """Keeps the k largest values of every row; the rows come in blocks, each with a slice, as `Interactions.shared_users` yields."""
        found: ItemLists | None = None
        for block, rows in blocks:
            top = torch.topk(rows, min(k, rows.shape[1]), dim=1)
            if found is None:  # whole from the start: many small pieces between large blocks would tear the memory apart
                size = rows.shape[1], top.values.shape[1]
                found = ItemLists(top.indices.new_empty(size), top.values.new_empty(size))
            found.columns[block], found.values[block] = top.indices, top.values
        assert found is not None, "a catalog has items"
        return found

    def first(self, k: int) -> "ItemLists":
        """Returns the k largest values of every row."""
        return ItemLists(self.columns[:, :k], self.values[:, :k])

    def entries(self) -> tuple[Csr, Tensor]:
        """Returns the matrix M [num_items, num_items] by its entries other than 0: the columns of every row, and their values."""
        count, kept = self.columns.shape[0], self.values != 0
        rows = torch.arange(count, device=kept.device)[:, None].expand_as(self.columns)[kept]
        columns, values = self.columns[kept], self.values[kept]
        order = torch.argsort(rows * count + columns)
        return Csr.from_pairs(rows, columns, count, count), values[order]

    def similarities(self, rows: Tensor | None = None, columns: Tensor | None = None, turned: bool = False) -> Similarities:
        """Returns diag(rows) M diag(columns), or that of M^T, as a sparse matrix with which histories are scored.

        Args:
            rows, columns: float64 [num_items]; None stands for ones.
            turned: Whether M is transposed first.
        """
        matrix, values = self.entries()
        if turned:
            matrix, places = matrix.transpose()
            values = values[places]
        wide = values.double()
        for scale, at in ((rows, matrix.rows), (columns, matrix.columns)):
            wide = wide if scale is None else wide * scale[at]
        return Similarities(Csr(matrix.pointers, matrix.columns.int(), matrix.num_columns), wide.float())

    def products(self) -> Scores:
        """Returns the matrix M [num_items, num_items] as products: `to_users` is M x, and `to_items` M^T x."""
        count, (matrix, values) = self.columns.shape[0], self.entries()
        turned, places = matrix.transpose()
        turned_values = values[places]
        return Scores(
            count,
            lambda x: weighted_sum(x.contiguous(), matrix, values),
            lambda x: weighted_sum(x.contiguous(), turned, turned_values),
        )

    def dense(self) -> Tensor:
        """Returns M as a matrix."""
        count = self.columns.shape[0]
        return torch.zeros(count, count, dtype=self.values.dtype, device=self.values.device).scatter_(1, self.columns, self.values)
