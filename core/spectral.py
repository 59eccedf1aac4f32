"""Computes a spectral start of ID tables: the leading singular subspace of the normalised train graph (docs/method.md 1.8).

Let Ã ≈ P Σ Q^T with the d largest singular values. The start is E_U = P Σ^1/2 R and E_I = Q Σ^1/2 R, with one orthogonal matrix R, so that
E_U E_I^T is the best approximation of Ã of rank d: the scores of an ideal low-pass filter (Shen et al., "How Powerful is Graph
Convolution for Recommendation?", CIKM 2021). R does not change a score; it is the rotation that the power iterations end with, and makes
every row a continuous function of the graph and of the seed, which signs and orders of single singular vectors are not.

Other exponents of the degrees than 1/2 take N = D_U^-a A D_I^-b in the place of Ã = D_U^-1/2 A D_I^-1/2: rows are scaled by powers of their
degrees before and after a propagation, so that whoever holds a row needs no degree of another one.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .graph import BipartiteGraph, degree_power
from .sides import ITEMS, SIDES, USERS, other_side

NUM_ITERATIONS = 12
LEAST_EIGENVALUE = 1e-12  # as a share of the largest; what is below is no direction of the graph
NORMALISED = (0.5, 0.5)  # the exponents a of users and b of items with which D_U^-a A D_I^-b is Ã


class NodeRows(Protocol):
    """Describes the rows of all users and items, whoever holds them; every call is collective."""

    def propagate(self, target_side: int) -> None:
        """Replaces the rows of one side by the weighted sums over the other side's rows: Ã x for users, Ã^T x for items."""

    def scale(self, side: int, exponent: float) -> None:
        """Multiplies every row of a side by its node's degree^exponent, and by 0 where the degree is 0."""

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


@dataclass(frozen=True)
class WeightedRows:
    """Propagates rows over N = D_U^-a A D_I^-b in place of Ã: N = D_U^(1/2 - a) Ã D_I^(1/2 - b).

    With a = b = 1/2 nothing is scaled, and the results are those of Ã to the last bit.

    Attributes:
        rows: The rows of users and items.
        exponents: a and b.
    """

    rows: NodeRows
    exponents: tuple[float, float]

    def propagate(self, target_side: int) -> None:
        """Replaces the rows of one side by N x (or N^T x), and scales the other side's rows, whose values then have no use."""
        self._scale(other_side(target_side), 1.0)
        self.rows.propagate(target_side)
        self._scale(target_side, 1.0)

    def restore(self, side: int) -> None:
        """Gives a side the rows that it had before the last propagation from it scaled them."""
        self._scale(side, -1.0)

    def _scale(self, side: int, sign: float) -> None:
        exponent = sign * (0.5 - self.exponents[side])
        if exponent:
            self.rows.scale(side, exponent)


def start_spectrally(rows: NodeRows, counts: tuple[int, int], init_scale: float, exponents: tuple[float, float] = NORMALISED) -> None:
    """Replaces seeded random rows by the spectral start, by block power iterations; the items' rows are where they begin.

    Args:
        rows: The rows of users and items, [n, d].
        counts: The numbers of users and items.
        init_scale: Root mean square of the entries of either table afterwards.
        exponents: a of users and b of items; the start is that of D_U^-a A D_I^-b.
    """
    weighted = WeightedRows(rows, exponents)
    for _ in range(NUM_ITERATIONS):
        weighted.propagate(USERS)
        weighted.propagate(ITEMS)
        rows.multiply(ITEMS, matrix_power(rows.gram(ITEMS), -0.5))
    weighted.propagate(USERS)  # with orthonormal items' rows the users' Gram matrix has the squared singular values
    weighted.restore(ITEMS)
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

    def scale(self, side: int, exponent: float) -> None:
        """See `NodeRows`."""
        degrees = (self.graph.users, self.graph.items)[side].degrees
        self.rows[side].copy_(self.rows[side].double() * degree_power(degrees, exponent)[:, None])

    def gram(self, side: int) -> Tensor:
        """See `NodeRows`."""
        rows = self.rows[side].double()
        return (rows.T @ rows).cpu()

    def multiply(self, side: int, matrix: Tensor) -> None:
        """See `NodeRows`."""
        rows = self.rows[side]
        rows.copy_(rows.double() @ matrix.to(rows.device))
