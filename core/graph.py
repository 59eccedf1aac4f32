"""The user-item graph in memory and its normalised propagation."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Csr:
    """Rows of sorted column indices.

    Attributes:
        pointers: int64 [num_rows + 1].
        columns: int64 [num_edges], ascending within a row.
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
        """int64 [num_rows]."""
        return self.pointers.diff()

    @property
    def rows(self) -> Tensor:
        """The row of every edge, int64 [num_edges]."""
        return torch.repeat_interleave(torch.arange(self.num_rows, device=self.columns.device), self.degrees)

    @staticmethod
    def from_pairs(rows: Tensor, columns: Tensor, num_rows: int, num_columns: int) -> "Csr":
        """Builds from int64 pairs in any order; a pair that occurs twice stays twice."""
        order = torch.argsort(rows * num_columns + columns)
        pointers = torch.zeros(num_rows + 1, dtype=torch.int64, device=rows.device)
        pointers[1:] = torch.bincount(rows, minlength=num_rows).cumsum(0)
        return Csr(pointers, columns[order].contiguous(), num_columns)

    def select(self, rows: Tensor) -> "Csr":
        """The given rows, int64 [n], as a matrix of n rows."""
        degrees = self.degrees[rows]
        pointers = torch.cat([degrees.new_zeros(1), degrees.cumsum(0)])
        within = torch.arange(int(pointers[-1]), device=rows.device) - torch.repeat_interleave(pointers[:-1], degrees)
        start = torch.repeat_interleave(self.pointers[rows], degrees)
        return Csr(pointers, self.columns[start + within], self.num_columns)

    def to(self, device: torch.device | str) -> "Csr":
        return Csr(self.pointers.to(device), self.columns.to(device), self.num_columns)


class _NeighbourSum(torch.autograd.Function):
    """out[r] = Σ_{c in row r} w_rc x[c]; the backward pass is the same sum over the transposed rows.

    `embedding_bag` is the fastest exact gather-and-sum that torch has on a CPU (benchmarks/README.md), and runs on any device.
    """

    @staticmethod
    def forward(ctx, x: Tensor, rows: Csr, weights: Tensor, back_rows: Csr, back_weights: Tensor) -> Tensor:
        ctx.back = back_rows, back_weights
        return _weighted_sum(x, rows, weights)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _weighted_sum(grad.contiguous(), *ctx.back), None, None, None, None


def _weighted_sum(x: Tensor, rows: Csr, weights: Tensor) -> Tensor:
    return F.embedding_bag(rows.columns, x, rows.pointers, mode="sum", include_last_offset=True, per_sample_weights=weights.to(x.dtype))


@dataclass(frozen=True)
class BipartiteGraph:
    """Train interactions in both directions with Ã = D_U^-1/2 A D_I^-1/2 (method.md, notation).

    Attributes:
        users: Items of each user.
        items: Users of each item.
        user_weights: Ã's entry for every edge in the order of `users`, float32 [num_edges].
        item_weights: The same in the order of `items`.
    """

    users: Csr
    items: Csr
    user_weights: Tensor
    item_weights: Tensor

    @staticmethod
    def from_pairs(users: Tensor, items: Tensor, num_users: int, num_items: int) -> "BipartiteGraph":
        """Builds from the int64 train pairs, in any order."""
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

    def to_users(self, x: Tensor) -> Tensor:
        """Ã x: [num_items, d] -> [num_users, d]."""
        return _NeighbourSum.apply(x, self.users, self.user_weights, self.items, self.item_weights)

    def to_items(self, x: Tensor) -> Tensor:
        """Ã^T x: [num_users, d] -> [num_items, d]."""
        return _NeighbourSum.apply(x, self.items, self.item_weights, self.users, self.user_weights)

    def light_propagation(self, users: Tensor, items: Tensor, num_layers: int) -> tuple[Tensor, Tensor]:
        """LightGCN: the mean of layers 0..num_layers (He et al. 2020, eq. 3-4)."""
        user_sum, item_sum = users, items
        for _ in range(num_layers):
            users, items = self.to_users(items), self.to_items(users)
            user_sum, item_sum = user_sum + users, item_sum + items
        return user_sum / (num_layers + 1), item_sum / (num_layers + 1)
