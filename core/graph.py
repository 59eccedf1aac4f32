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
    """out[r] = Σ_{c in row r} x[c]; the backward pass is the same sum over the transposed rows.

    `embedding_bag` is the fastest exact gather-and-sum that torch has on a CPU (about 10 times torch.sparse), and runs on any device.
    """

    @staticmethod
    def forward(ctx, x: Tensor, pointers: Tensor, columns: Tensor, back_pointers: Tensor, back_columns: Tensor) -> Tensor:
        ctx.save_for_backward(back_pointers, back_columns)
        return F.embedding_bag(columns, x, pointers, mode="sum", include_last_offset=True)

    @staticmethod
    def backward(ctx, grad: Tensor):
        pointers, columns = ctx.saved_tensors
        return (
            F.embedding_bag(columns, grad.contiguous(), pointers, mode="sum", include_last_offset=True),
            None,
            None,
            None,
            None,
        )


@dataclass(frozen=True)
class BipartiteGraph:
    """Train interactions in both directions with Ã = D_U^-1/2 A D_I^-1/2 (method.md, notation).

    Attributes:
        users: Items of each user.
        items: Users of each item.
        user_scale: D_U^-1/2, float32 [num_users, 1], 0 where the degree is 0.
        item_scale: D_I^-1/2, float32 [num_items, 1].
    """

    users: Csr
    items: Csr
    user_scale: Tensor
    item_scale: Tensor

    @staticmethod
    def from_pairs(users: Tensor, items: Tensor, num_users: int, num_items: int) -> "BipartiteGraph":
        """Builds from the int64 train pairs, in any order."""
        by_user = Csr.from_pairs(users, items, num_users, num_items)
        by_item = Csr.from_pairs(items, users, num_items, num_users)
        scales = [torch.where(c.degrees > 0, c.degrees.clamp(min=1).float().rsqrt(), 0.0)[:, None] for c in (by_user, by_item)]
        return BipartiteGraph(by_user, by_item, *scales)

    @property
    def num_users(self) -> int:
        return self.users.num_rows

    @property
    def num_items(self) -> int:
        return self.items.num_rows

    def to(self, device: torch.device | str) -> "BipartiteGraph":
        return BipartiteGraph(self.users.to(device), self.items.to(device), self.user_scale.to(device), self.item_scale.to(device))

    def to_users(self, x: Tensor) -> Tensor:
        """Ã x: [num_items, d] -> [num_users, d]."""
        total = _NeighbourSum.apply(
            self.item_scale.to(x.dtype) * x,
            self.users.pointers,
            self.users.columns,
            self.items.pointers,
            self.items.columns,
        )
        return self.user_scale.to(x.dtype) * total

    def to_items(self, x: Tensor) -> Tensor:
        """Ã^T x: [num_users, d] -> [num_items, d]."""
        total = _NeighbourSum.apply(
            self.user_scale.to(x.dtype) * x,
            self.items.pointers,
            self.items.columns,
            self.users.pointers,
            self.users.columns,
        )
        return self.item_scale.to(x.dtype) * total

    def light_propagation(self, users: Tensor, items: Tensor, num_layers: int) -> tuple[Tensor, Tensor]:
        """LightGCN: the mean of layers 0..num_layers (He et al. 2020, eq. 3-4)."""
        user_sum, item_sum = users, items
        for _ in range(num_layers):
            users, items = self.to_users(items), self.to_items(users)
            user_sum, item_sum = user_sum + users, item_sum + items
        return user_sum / (num_layers + 1), item_sum / (num_layers + 1)
