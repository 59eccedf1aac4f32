"""Computes a spectral start of ID tables: the leading singular subspace of the normalised train graph (docs/method.md 1.8).

Let Ã ≈ P Σ Q^T with the d largest singular values. The start is E_U = P Σ^1/2 R and E_I = Q Σ^1/2 R, with one orthogonal matrix R, so that
E_U E_I^T is the best approximation of Ã of rank d: the scores of an ideal low-pass filter (Shen et al., "How Powerful is Graph
Convolution for Recommendation?", CIKM 2021). R does not change a score; it is the rotation that the power iterations end with, and makes
every row a continuous function of the graph and of the seed, which signs and orders of single singular vectors are not.
"""

from typing import Protocol

import torch
from torch import Tensor

from .graph import BipartiteGraph
from .sides import ITEMS, SIDES, USERS

NUM_ITERATIONS = 12
LEAST_EIGENVALUE = 1e-12  # as a share of the largest; what is below is no direction of the graph


class NodeRows(Protocol):
    """Describes the rows of all users and items, whoever holds them; every call is collective."""

    def propagate(self, target_side: int) -> None:
        """Replaces the rows of one side by the weighted sums over the other side's rows: Ã x for users, Ã^T x for items."""

    def gram(self, side: int) -> Tensor:
        """Returns X^T X over all rows X of a side, float64 [d, d], the same on every worker."""

    def multiply(self, side: int, matrix: Tensor) -> None:
        """Replaces the rows X of a side by X M, with M float64 [d, d]."""


def matrix_power(gram: Tensor, power: float) -> Tensor:
    """Computes a power of a symmetric positive semi-definite matrix, float64 [d, d], on the span of its eigenvectors that are not 0."""
    values, vectors = torch.linalg.eigh(gram)
    is_kept = values > LEAST_EIGENVALUE * values[-1]
    powers = torch.where(is_kept, values.clamp(min=torch.finfo(values.dtype).tiny) ** power, 0.0)
    return (vectors * powers) @ vectors.T


def start_spectrally(rows: NodeRows, counts: tuple[int, int], init_scale: float) -> None:
    """Replaces seeded random rows by the spectral start, by block power iterations; the items' rows are where they begin.

    Args:
        rows: The rows of users and items, [n, d].
        counts: The numbers of users and items.
        init_scale: Root mean square of the entries of either table afterwards.
    """
    for _ in range(NUM_ITERATIONS):
        rows.propagate(USERS)
        rows.propagate(ITEMS)
        rows.multiply(ITEMS, matrix_power(rows.gram(ITEMS), -0.5))
    rows.propagate(USERS)  # with orthonormal items' rows the users' Gram matrix has the squared singular values
    gram = rows.gram(USERS)
    size = torch.trace(matrix_power(gram, 0.5))
    for side in SIDES:
        scale = init_scale * (counts[side] * gram.shape[0] / size).sqrt()
        rows.multiply(side, scale * matrix_power(gram, -0.25 if side == USERS else 0.25))


class WholeRows:
    """Holds the rows of all users and items in this process; a `NodeRows`.

    Args:
        graph: The train graph.
        users, items: Rows on the graph's device, float32 [num_users, d] and [num_items, d], which are changed in place.
    """

    def __init__(self, graph: BipartiteGraph, users: Tensor, items: Tensor) -> None:
        self.graph, self.rows = graph, (users, items)

    def propagate(self, target_side: int) -> None:
        """See `NodeRows`."""
        sums = self.graph.to_users(self.rows[ITEMS]) if target_side == USERS else self.graph.to_items(self.rows[USERS])
        self.rows[target_side].copy_(sums)

    def gram(self, side: int) -> Tensor:
        """See `NodeRows`."""
        rows = self.rows[side].double()
        return (rows.T @ rows).cpu()

    def multiply(self, side: int, matrix: Tensor) -> None:
        """See `NodeRows`."""
        rows = self.rows[side]
        rows.copy_(rows.double() @ matrix.to(rows.device))
