"""Turns a matrix of scores that is only known by its products into vectors of users and items, and scales vectors by user."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..rows import initial_rows
from ..sides import ITEMS
from ..standard_scores import score_deviation

Product = Callable[[Tensor], Tensor]
ITERATIONS = 8


def width_of(rank: int, num_items: int) -> int:
    """Returns the columns of the power iterations: some beside the rank let the last wanted directions converge."""
    return min(rank + max(32, rank // 2), num_items)


@dataclass(frozen=True)
class Scores:
    """Describes a matrix of scores S [num_users, num_items] by its products.

    Attributes:
        num_items: The number of columns.
        to_users: Computes S x, [num_users, n], from x [num_items, n].
        to_items: Computes S^T y, [num_items, n], from y [num_users, n].
    """

    num_items: int
    to_users: Product
    to_items: Product


@dataclass(frozen=True)
class Factors:
    """Holds the leading part of a singular value decomposition S ≈ left diag(values) right^T, largest values first.

    Attributes:
        left: [num_users, rank].
        values: [rank], at least 0.
        right: [num_items, rank].
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        return self.values.numel()

    def vectors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Returns vectors of users and of items whose dot products are the best approximation of the scores of this rank, at most."""
        root = self.values[:rank].sqrt()
        return self.left[:, :rank] * root, self.right[:, :rank] * root


@torch.no_grad()
def leading_factors(scores: Scores, rank: int, seed: int, like: Tensor, iterations: int = ITERATIONS) -> Factors:
    """Computes the leading singular vectors by block power iterations from seeded random rows (Halko, Martinsson, Tropp 2011).

    Args:
        scores: The matrix.
        rank: The number of singular vectors; there are no more than items.
        seed: Seed of the random rows.
        like: A tensor of the dtype and on the device of the result.
        iterations: Products with S^T S; the scores of the leading part need few, and the singular vectors themselves more.
    """
    rank = min(rank, scores.num_items)
    width = width_of(rank, scores.num_items)
    rows = torch.arange(scores.num_items, device=like.device)
    block = torch.linalg.qr(initial_rows(ITEMS, rows, width, 1.0, seed).to(like.dtype)).Q
    for _ in range(iterations):
        block = torch.linalg.qr(scores.to_items(scores.to_users(block))).Q
    reached = scores.to_users(block)  # S Q, [num_users, width]
    wide = reached.double()
    squares, rotation = torch.linalg.eigh(wide.T @ wide)
    squares, rotation = squares.flip(0)[:rank].clamp(min=0), rotation.flip(1)[:, :rank]
    values = squares.sqrt()
    kept = squares > 1e-12 * squares[:1]
    left = (wide @ rotation) * torch.where(kept, 1 / values.clamp(min=torch.finfo(values.dtype).tiny), 0.0)
    return Factors(left.to(like.dtype), torch.where(kept, values, 0.0).to(like.dtype), (block.double() @ rotation).to(like.dtype))


class FactorCache:
    """Keeps the last factors, so that settings that differ in the rank alone share a decomposition.

    Args:
        seed: Seed of the random rows.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self._key, self._factors = seed, object(), None

    _key: object
    _factors: Factors | None

    def of(self, key: object, scores: Scores, rank: int, like: Tensor) -> Factors:
        """Returns at least `rank` leading factors of the scores that `key` stands for."""
        rank = min(rank, scores.num_items)
        if self._factors is None or self._key != key or self._factors.rank < rank:
            self._key, self._factors = key, leading_factors(scores, rank, self._seed, like)
        return self._factors


@torch.no_grad()
def scaled_by_user(users: Tensor, items: Tensor) -> Tensor:
    """Scales every user's vector so that the user's scores have the standard deviation 1 over all items; rankings stay as they are.

    Users whose scores are all equal keep their vectors.

    Args:
        users, items: float [num_users, n] and [num_items, n].

    Returns:
        float32 [num_users, n].
    """
    centred = items.double() - items.double().mean(0)
    covariance = centred.T @ centred / items.shape[0]
    scaled = []
    for rows in users.split(max(1, (1 << 24) // max(1, users.shape[1]))):
        wide, deviation = rows.double(), score_deviation(rows, covariance)[:, None]
        scaled.append(torch.where(deviation > 0, wide / torch.where(deviation > 0, deviation, 1.0), wide).float())
    return torch.cat(scaled) if scaled else users.float()
