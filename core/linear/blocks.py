"""Fits linear models by propagation alone, over rows of users and items that several workers hold (docs/method.md 7.1 and 8).

What one process computes on whole matrices (`factors.py`) is done here on blocks of rows: a worker multiplies, scales and writes its own
rows, and what is summed over all of them is small. The numbers are the same up to rounding: block power iterations begin with the same
seeded rows, and keep their columns orthonormal by the inverse root of the Gram matrix in place of a QR decomposition, over the same space.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..graph import degree_power
from ..rows import initial_rows
from ..sides import ITEMS, USERS
from ..spectral import matrix_power
from ..standard_scores import score_deviation
from .factors import width_of

RowsOf = Callable[..., Tensor]


class Block(Protocol):
    """Describes a block of rows: one of `dim` columns, float32, for every user or every item.

    Attributes:
        side: USERS or ITEMS.
        dim: Columns.
    """

    side: int
    dim: int


class NodeBlocks(Protocol):
    """Makes and changes blocks, whoever holds their rows; every call is collective."""

    @property
    def num_items(self) -> int:
        """Returns the number of items."""

    def block(self, side: int, dim: int) -> Block:
        """Makes a block of zeros."""

    def write(self, target: Block, sources: Sequence[Block], rows: RowsOf) -> None:
        """Sets every row of a block, some rows at a time.

        Args:
            target: The block; it may be one of the sources.
            sources: Blocks of the same side, which are read.
            rows: `rows(ids, degrees, *x)` returns float [n, dim] from dataset indices, int64 [n], numbers of train interactions [n], and
                the sources' rows, float64 [n, ...].
        """

    def propagate(self, source: Block, target: Block) -> None:
        """Sets a block to Ã x (users) or Ã^T x (items), where x is a block of the other side."""

    def total(self, block: Block, of_rows: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns the sum of a function of the rows, some at a time, float64 of any shape: the same on every worker."""


Apply = Callable[[Block, Block], None]


@dataclass(frozen=True)
class BlockProducts:
    """Describes a matrix S [num_users, num_items] by its products with blocks.

    Attributes:
        to_users: Sets the second block, of users, to S x, where x is the first one, of items, which stays as it is.
        to_items: Sets the second block, of items, to S^T y, where y is the first one, of users, which may be overwritten.
    """

    to_users: Apply
    to_items: Apply


@dataclass(frozen=True)
class LeadingBlocks:
    """Holds leading singular vectors of a matrix S, not yet turned towards the axes.

    Attributes:
        items: Q, a block of orthonormal columns.
        users: S Q.
        values: The leading singular values, float64 [rank], largest first; 0 for directions that are none.
        rotation: float64 [width, rank]: Q times it are right singular vectors, and S Q times it the left ones times their values.
    """

    items: Block
    users: Block
    values: Tensor
    rotation: Tensor


def scaled(blocks: NodeBlocks, source: Block, target: Block, exponent: float) -> None:
    """Sets a block to the rows of another one times degree^exponent."""
    blocks.write(target, [source], lambda ids, degrees, x: degree_power(degrees, exponent)[:, None] * x)


def gram(blocks: NodeBlocks, block: Block) -> Tensor:
    """Returns X^T X, float64 [dim, dim]."""
    return blocks.total(block, lambda x: x.T @ x)


def orthonormalise(blocks: NodeBlocks, block: Block) -> None:
    """Makes the columns of a block orthonormal, over the same space."""
    root = matrix_power(gram(blocks, block), -0.5)
    blocks.write(block, [block], lambda ids, degrees, x: x @ root)


def weighted(blocks: NodeBlocks, scratch: Block, user_exponent: float, item_exponent: float) -> BlockProducts:
    """Returns N = D_U^-a/2 A D_I^-b = D_U^(1/2 - a/2) Ã D_I^(1/2 - b) as products.

    Args:
        blocks: The blocks.
        scratch: A block of items that products overwrite.
        user_exponent, item_exponent: a and b.
    """
    of_users, of_items = (1 - user_exponent) / 2, 0.5 - item_exponent

    def to_users(items: Block, users: Block) -> None:
        scaled(blocks, items, scratch, of_items)
        blocks.propagate(scratch, users)
        scaled(blocks, users, users, of_users)

    def to_items(users: Block, items: Block) -> None:
        scaled(blocks, users, users, of_users)
        blocks.propagate(users, scratch)
        scaled(blocks, scratch, items, of_items)

    return BlockProducts(to_users, to_items)


def leading_blocks(
    blocks: NodeBlocks, products: BlockProducts, pair: tuple[Block, Block], rank: int, seed: int, iterations: int
) -> LeadingBlocks:
    """Computes leading singular vectors by block power iterations from seeded random rows, as `factors.leading_factors` does.

    Args:
        blocks, products: The blocks and the matrix.
        pair: Blocks of users and of items that hold the result, of the width of the iterations.
        rank: The number of singular vectors.
        seed: Seed of the random rows.
        iterations: Products with S^T S.
    """
    users, items = pair
    blocks.write(items, [], lambda ids, degrees: initial_rows(ITEMS, ids, items.dim, 1.0, seed))
    orthonormalise(blocks, items)
    for _ in range(iterations):
        products.to_users(items, users)
        orthonormalise(blocks, users)  # the squares of the singular values would leave small directions to rounding
        products.to_items(users, items)
        orthonormalise(blocks, items)
    orthonormalise(blocks, items)  # rows are float32: once more takes what rounding left
    products.to_users(items, users)
    squares, rotation = torch.linalg.eigh(gram(blocks, users))
    squares, rotation = squares.flip(0)[:rank].clamp(min=0), rotation.flip(1)[:, :rank]
    return LeadingBlocks(items, users, torch.where(squares > 1e-12 * squares[:1], squares.sqrt(), 0.0), rotation)


def standardise_users(blocks: NodeBlocks, users: Block, items: Block) -> None:
    """Scales every user's row so that its scores have the standard deviation 1 over all items, as `factors.scaled_by_user` does."""
    mean = blocks.total(items, lambda x: x.sum(0)) / blocks.num_items
    covariance = blocks.total(items, lambda x: (x - mean).T @ (x - mean)) / blocks.num_items

    def rows(ids: Tensor, degrees: Tensor, x: Tensor) -> Tensor:
        deviation = score_deviation(x, covariance)[:, None]
        return torch.where(deviation > 0, x / torch.where(deviation > 0, deviation, 1.0), x)

    blocks.write(users, [users], rows)


def working_blocks(blocks: NodeBlocks, rank: int) -> tuple[tuple[Block, Block], Block]:
    """Makes a pair of blocks of users and items of the width of the iterations for a rank, and a further one of items."""
    width = width_of(rank, blocks.num_items)
    return (blocks.block(USERS, width), blocks.block(ITEMS, width)), blocks.block(ITEMS, width)
