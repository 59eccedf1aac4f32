"""The leading singular values of the normalised adjacency, by the block power iterations of a spectral start."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.graph import BipartiteGraph, Csr
from ...core.rows import initial_rows
from ...core.sides import ITEMS, USERS
from ...core.spectral import WholeRows, start_spectrally

MOST_VALUES, LEAST_VALUES = 128, 16
MOST_ENTRIES = 1 << 26  # of the two tables of vectors, beyond LEAST_VALUES columns


@dataclass(frozen=True)
class Spectrum:
    """The singular values of Ã = D_U^-1/2 A D_I^-1/2, of which the largest is 1.

    Attributes:
        values: The leading ones, descending; the last of them are a little too small, since the iterations end before they settle.
        energy: Σ σ², over all of them: the sum of 1 / (degree of the user · degree of the item) over the train interactions.
    """

    values: tuple[float, ...]
    energy: float

    @property
    def effective_rank(self) -> float:
        """The stable rank Σ σ² / σ_1², which is `energy`: as many equal directions would hold as much."""
        return self.energy

    def share(self, rank: int) -> float:
        """The share of the energy in the first `rank` directions, at most as many as there are values."""
        return sum(value**2 for value in self.values[:rank]) / self.energy


def spectrum_of(train: Csr, seed: int) -> tuple[Spectrum, Tensor, Tensor]:
    """Computes the spectrum, and the vectors of users and items whose dot products are the best approximation of Ã of their size.

    Args:
        train: Train items of all users.
        seed: Seed of the rows that the iterations begin with.

    Returns:
        The spectrum; vectors, float32 [num_users, d] and [num_items, d].
    """
    counts = (train.num_rows, train.num_columns)
    dim = min(*counts, MOST_VALUES, max(LEAST_VALUES, MOST_ENTRIES // sum(counts)))
    graph = BipartiteGraph.from_pairs(train.rows, train.columns.long(), *counts)
    users = torch.zeros(counts[USERS], dim)
    items = initial_rows(ITEMS, torch.arange(counts[ITEMS]), dim, 1.0, seed)
    rows = WholeRows(graph, users, items)
    start_spectrally(rows, counts, 1.0)
    # The users' rows are P Σ^1/2 times one factor and a rotation, so their Gram matrix has the singular values times its square.
    values = torch.linalg.eigvalsh(rows.gram(USERS)).flip(0).clamp(min=0)
    scale = graph.user_weights.double().square()
    return Spectrum(tuple((values / values[0]).tolist()), float(scale.sum())), users, items
