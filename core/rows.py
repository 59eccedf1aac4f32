"""Rows of users and items: ID tables with their seeded start, and rows of unit length."""

import torch
from torch import Tensor, nn

from .autograd import Context
from .random import random_normal
from .sampling import STREAM_INITIAL
from .sides import ITEMS, USERS


class _RowNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = torch.where(norm > 0, 1 / norm, 0.0)
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Tensor:
        y, inverse = ctx.saved_tensors
        return torch.addcmul(grad, y, (grad * y).sum(-1, keepdim=True), value=-1).mul_(inverse)


def rownorm(x: Tensor) -> Tensor:
    """Rows scaled to unit length; a zero row stays zero and passes no gradient (its direction is not defined)."""
    return _RowNorm.apply(x)


class RowTables(nn.Module):
    """A row for every user, `user` [num_users, n], and for every item, `item` [num_items, m]."""

    user: Tensor
    item: Tensor


class IdTables(RowTables):
    """ID vectors of all users and items, as learnt tables E_U [num_users, d] and E_I [num_items, d]."""

    def __init__(self, user: Tensor, item: Tensor) -> None:
        super().__init__()
        self.user, self.item = nn.Parameter(user), nn.Parameter(item)

    @staticmethod
    def seeded(num_users: int, num_items: int, dim: int, init_scale: float, seed: int) -> "IdTables":
        """Tables at their seeded start; see `initial_rows`."""
        sizes = ((USERS, num_users), (ITEMS, num_items))
        return IdTables(*(initial_rows(side, torch.arange(count), dim, init_scale, seed) for side, count in sizes))


class FrozenTables(RowTables):
    """Rows that are not learnt, and that a checkpoint does not hold."""

    def __init__(self, user: Tensor, item: Tensor) -> None:
        super().__init__()
        self.register_buffer("user", user, persistent=False)
        self.register_buffer("item", item, persistent=False)


def initial_rows(side: int, rows: Tensor, dim: int, init_scale: float, seed: int) -> Tensor:
    """The seeded start of some rows of an ID table, normal with deviation `init_scale`, whatever holds the others.

    Args:
        side: USERS or ITEMS.
        rows: int64 [n], dataset indices.

    Returns:
        float32 [n, dim].
    """
    columns = torch.arange(dim, device=rows.device)
    return init_scale * random_normal(STREAM_INITIAL, seed, side, rows[:, None], columns)
