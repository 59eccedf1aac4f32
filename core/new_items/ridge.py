"""Computes weighted ridge regression in closed form, from sums that folds add up (docs/method.md 11.2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..features import chunk_rows


@dataclass(frozen=True)
class RidgeSums:
    """Holds all that ridge regression needs of some rows z with targets t and weights w, in float64; sums of folds add up.

    Attributes:
        gram: [D, D], Σ w z^T z.
        cross: [D, d], Σ w z^T t.
        inputs: [D], Σ w z.
        targets: [d], Σ w t.
        weight: Scalar, Σ w.
    """

    gram: Tensor
    cross: Tensor
    inputs: Tensor
    targets: Tensor
    weight: Tensor

    @staticmethod
    def of(z: Tensor, targets: Tensor, weights: Tensor) -> "RidgeSums":
        """Returns the sums of rows z [n, D] with targets [n, d] and weights [n], of any float dtype, a chunk at a time."""
        wide, size = torch.float64, chunk_rows(z.shape[1])
        gram, cross = torch.zeros(z.shape[1], z.shape[1], dtype=wide), torch.zeros(z.shape[1], targets.shape[1], dtype=wide)
        w, t, inputs = weights.to(wide), targets.to(wide), torch.zeros(z.shape[1], dtype=wide)
        for start in range(0, z.shape[0], size):
            here = slice(start, start + size)
            rows = z[here].to(wide)
            weighted = rows * w[here, None]
            gram.addmm_(weighted.T, rows)
            cross.addmm_(weighted.T, t[here])
            inputs += weighted.sum(0)
        return RidgeSums(gram, cross, inputs, w @ t, w.sum())

    def __add__(self, other: "RidgeSums") -> "RidgeSums":
        return RidgeSums(*(a + b for a, b in zip(self._all(), other._all())))

    def __sub__(self, other: "RidgeSums") -> "RidgeSums":
        return RidgeSums(*(a - b for a, b in zip(self._all(), other._all())))

    def _all(self) -> tuple[Tensor, ...]:
        return self.gram, self.cross, self.inputs, self.targets, self.weight

    def mean_target(self) -> Tensor:
        """Returns μ = Σ w t / Σ w, float64 [d]."""
        return self.targets / self.weight

    def solve(self, penalty: float, scales: Tensor, columns: Tensor | None = None) -> Tensor:
        """Returns the W [D', d] that minimises Σ w |(z a) V - (t - μ)|² + penalty Σ w |V|² over V, as W = a V: z W is then the prediction.

        Args:
            penalty: Strength of the ridge for each unit of weight, above 0.
            scales: a, float64 [D], the factor on each column of z; a column of factor 0 gets no weight.
            columns: int64 [D'], the columns that are read; all of them by default.
        """
        gram, cross = self.gram, self.cross - self.inputs[:, None] * self.mean_target()
        if columns is not None:
            gram, cross, scales = gram[columns][:, columns], cross[columns], scales[columns]
        system = gram * scales[:, None] * scales
        system.diagonal().add_(penalty * self.weight)
        return scales[:, None] * torch.cholesky_solve(scales[:, None] * cross, torch.linalg.cholesky(system))
