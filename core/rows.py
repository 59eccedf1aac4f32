"""Holds rows of users and items: ID tables with their seeded start, and rows scaled to unit length."""

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
    """Scales rows to unit length; a row of zeros stays zero and passes no gradient, since its direction is not defined."""
    return _RowNorm.apply(x)


class RowTables(nn.Module):
    """Holds a row for every user, `user` [num_users, n], and a row for every item, `item` [num_items, m]."""

    user: Tensor
    item: Tensor


class IdTables(RowTables):
    """Holds the ID vectors of all users and items as learnt tables E_U [num_users, d] and E_I [num_items, d]."""

    def __init__(self, user: Tensor, item: Tensor) -> None:
        super().__init__()
        self.user, self.item = nn.Parameter(user), nn.Parameter(item)

    @staticmethod
    def seeded(num_users: int, num_items: int, dim: int, init_scale: float, seed: int) -> "IdTables":
        """Returns tables with seeded random rows; see `initial_rows`."""
        sizes = ((USERS, num_users), (ITEMS, num_items))
        return IdTables(*(initial_rows(side, torch.arange(count), dim, init_scale, seed) for side, count in sizes))


class FrozenTables(RowTables):
    """Holds rows that are not learnt, and that a checkpoint does not contain."""

    def __init__(self, user: Tensor, item: Tensor) -> None:
        super().__init__()
        self.register_buffer("user", user, persistent=False)
        self.register_buffer("item", item, persistent=False)


def initial_rows(side: int, rows: Tensor, dim: int, init_scale: float, seed: int) -> Tensor:
    """Returns the seeded start of some rows of an ID table: normal values with standard deviation `init_scale`.

    A row's start depends on seed, side and dataset index alone, so that the process that holds the row can draw it without the others.

    Args:
        side: USERS or ITEMS.
        rows: int64 [n], dataset indices.
        dim: Columns of the table.
        init_scale: Standard deviation of the values.
        seed: Seed of the draw.

    Returns:
        float32 [n, dim].
    """
    columns = torch.arange(dim, device=rows.device)
    return init_scale * random_normal(STREAM_INITIAL, seed, side, rows[:, None], columns)
