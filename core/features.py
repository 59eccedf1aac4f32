"""Prepares raw modality features: streamed column statistics, standardisation and exact PCA (docs/method.md, notation and 1.1)."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .autograd import Context

CHUNK_BYTES = 64 * 2**20
GRAM_COLUMNS = 512
SHRINKAGE = 0.1  # the shrinkage of whitening, as a share of the mean eigenvalue
PRODUCT_BYTES = 2**20  # rows that a CPU reads, multiplies and forgets at a time: as many bytes stay in its caches


def zca(values: Tensor, vectors: Tensor) -> Tensor:
    """Returns the whitening V diag((λ + s mean(λ))^-½) V^T with the shrinkage s = 0.1, float64 [d, d] (docs/method.md, notation).

    Args:
        values: λ, the eigenvalues of a covariance, float64 [d]; those below 0 count as 0.
        vectors: V, its eigenvectors in columns, float64 [d, d].
    """
    values = values.clamp(min=0)
    return (vectors * (values + SHRINKAGE * values.mean().clamp(min=1e-30)).rsqrt()) @ vectors.T


def chunk_rows(dim: int) -> int:
    """Returns how many rows of `dim` columns are worked on at a time in float64: 64 MiB of them, and at most 16,384."""
    return max(1, min(16_384, CHUNK_BYTES // (8 * max(dim, 1))))


@dataclass
class FeatureMoments:
    """Accumulates count, sum and Gram matrix of the present rows of one modality, in float64; moments of shards add up.

    Attributes:
        count: float64 scalar tensor, the number of present rows.
        total: float64 [dim], the sum of the rows.
        upper: float64 [dim, dim], the Gram matrix on and right of its diagonal; entries left of the diagonal have no meaning.
    """

    count: Tensor
    total: Tensor
    upper: Tensor

    @staticmethod
    def zeros(dim: int, device: torch.device | str = "cpu") -> "FeatureMoments":
        """Returns the moments of an empty set of rows with `dim` columns: all of them are zero."""
        zeros = functools.partial(torch.zeros, dtype=torch.float64, device=device)
        return FeatureMoments(zeros(()), zeros(dim), zeros(dim, dim))

    @staticmethod
    def of(rows: Tensor, present: Tensor) -> "FeatureMoments":
        """Returns the moments of rows [n, dim] of any float dtype; rows that are not `present`, bool [n], are ignored."""
        moments = FeatureMoments.zeros(rows.shape[1], rows.device)
        moments.add(rows, present)
        return moments

    def add(self, rows: Tensor, present: Tensor) -> None:
        """Adds rows [n, dim] of any float dtype, a chunk at a time; rows that are not `present`, bool [n], are ignored."""
        dim, size = rows.shape[1], chunk_rows(rows.shape[1])
        self.count += present.sum()
        for start in range(0, rows.shape[0], size):
            chunk = rows[start : start + size][present[start : start + size]].to(torch.float64)
            self.total += chunk.sum(0)
            for first in range(0, dim, GRAM_COLUMNS):  # half the work for a wide modality
                block = slice(first, first + GRAM_COLUMNS)
                self.upper[block, first:].addmm_(chunk[:, block].T, chunk[:, first:])

    def tensors(self) -> list[Tensor]:
        """Returns the tensors themselves, to be summed over shards in place."""
        return [self.count, self.total, self.upper]

    def mean(self) -> Tensor:
        return self.total / self.count.clamp(min=1)

    def variance(self) -> Tensor:
        """Returns the columns' variance, float64 [dim]: divided by the count, and not below 0."""
        return (self.upper.diagonal() / self.count.clamp(min=1) - self.mean() ** 2).clamp(min=0)

    def upper_covariance(self, scale: Tensor) -> Tensor:
        """Returns the covariance of the columns times `scale` [dim]: float64 [dim, dim], divided by the count.

        Only the entries on and right of the diagonal have a meaning, as in `upper`.
        """
        mean = self.mean() * scale
        scaled = self.upper / self.count.clamp(min=1)
        return scaled.mul_(scale[:, None]).mul_(scale).addr_(mean, mean, alpha=-1)


@dataclass(frozen=True)
class Standardisation:
    """Standardises rows: x -> (x - mean) * scale for each column, times `whitening` if given; missing rows become zero.

    Attributes:
        mean: float64 [dim].
        scale: float64 [dim], 0 for a constant column; it also brings the mean row norm to one.
        whitening: float64 [dim, dim], the matrix that scaled rows are multiplied by; None without whitening.
    """

    mean: Tensor
    scale: Tensor
    whitening: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Returns mean, scale and, where there is one, whitening by name."""
        return {"mean": self.mean, "scale": self.scale, **({} if self.whitening is None else {"whitening": self.whitening})}

    @staticmethod
    def from_moments(moments: FeatureMoments) -> "Standardisation":
        """Returns the standardisation of the columns alone; `with_mean_row_norm` then brings the mean row norm to one."""
        mean = moments.mean()
        variance = moments.variance()
        # Below this bound a column counts as constant: its variance is no more than the rounding error of mean**2 in float64.
        constant = variance <= 1e-12 * (mean**2).clamp(min=1e-30)
        scale = torch.where(constant, 0.0, variance.clamp(min=1e-300).rsqrt())
        return Standardisation(mean, scale)

    def with_mean_row_norm(self, mean_row_norm: Tensor) -> "Standardisation":
        """Returns the standardisation divided by `mean_row_norm`, the mean norm of the present rows that it gives so far."""
        return replace(self, scale=self.scale / mean_row_norm.clamp(min=1e-30))

    def whitened(self, moments: FeatureMoments) -> "Standardisation":
        """Returns the standardisation followed by ZCA whitening, V diag((λ + s mean(λ))^-½) V^T.

        V diag(λ) V^T is the covariance of the scaled columns. The shrinkage s = 0.1 keeps directions of hardly any variance from becoming
        as loud as the others. The matrix is symmetric, so no sign has to be chosen.
        """
        return replace(self, whitening=zca(*torch.linalg.eigh(moments.upper_covariance(self.scale), UPLO="U")))

    def apply(self, rows: Tensor, present: Tensor) -> Tensor:
        """Standardises raw rows [n, dim] with their presence, bool [n]; returns float32 [n, dim].

        It computes in float32 where no column's mean is more than 64 of its standard deviations (an error of at most 4e-6 deviations), and
        in float64 otherwise.
        """
        dtype = torch.float32 if self.is_centred else torch.float64
        standard = rows.to(dtype).sub_(self.mean.to(dtype)) if rows.dtype != dtype else rows - self.mean.to(dtype)
        standard = standard.mul_(self.scale.to(dtype)).mul_(present[:, None])
        if self.whitening is not None:
            standard = standard @ self.whitening.to(dtype)
        return standard.to(torch.float32)

    def lazily(self, read: "RowReader", places: Tensor, device: torch.device | str = "cpu") -> "LazyRows | Tensor":
        """Returns rows for the first reduction layer, which reads and standardises them while it multiplies.

        Where this would lose digits in float32, the rows are standardised at once and returned as float32 [n, dim].

        Args:
            read: Reads raw rows.
            places: int64 [n], the rows' places for `read`.
            device: Where the product is computed.
        """
        if not self.is_centred:
            return self.apply(*read(places)).to(device)
        parts = (None if t is None else t.to(device, torch.float32) for t in (self.mean, self.scale, self.whitening))
        return LazyRows(read, places, *parts)  # type: ignore[arg-type]

    @functools.cached_property
    def is_centred(self) -> bool:
        """Returns whether every column's mean is at most 64 of its standard deviations, which are 1 / sqrt(dim) for rows of unit norm."""
        return bool(((self.mean * self.scale).abs().max() if self.mean.numel() else 0) * self.mean.numel() ** 0.5 <= 64)

    def sum_of_row_norms(self, rows: Tensor, present: Tensor) -> Tensor:
        """Returns the sum of the present rows' norms after standardisation, a float64 scalar."""
        total, size = torch.zeros((), dtype=torch.float64, device=rows.device), chunk_rows(rows.shape[1])
        for start in range(0, rows.shape[0], size):
            chunk = rows[start : start + size][present[start : start + size]].to(torch.float64).sub_(self.mean).mul_(self.scale)
            total += (chunk if self.whitening is None else chunk @ self.whitening).norm(dim=1).sum()
        return total


# From places, int64 [n], to raw rows [n, dim] and their presence, bool [n].
RowReader = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LazyRows:
    """Stands for rows x_i = present_i (row_i - mean) * scale that are read and standardised only while they are multiplied.

    The backward pass reads the rows again, then from the page cache: in chunks that fit the CPU's caches this costs no more than to keep
    them.

    Attributes:
        read: Reads raw rows.
        places: int64 [n], the rows' places for `read`.
        mean, scale: float32 [dim], on the device of the product.
        whitening: float32 [dim, dim], the symmetric matrix that standardised rows are multiplied by; None without whitening.
    """

    read: RowReader
    places: Tensor
    mean: Tensor
    scale: Tensor
    whitening: Tensor | None = None

    def linear(self, weight: Tensor) -> Tensor:
        """Computes x W^T, [n, out] in the weight's dtype, from the weight W [out, dim], float32 or bfloat16."""
        if self.whitening is not None:  # P is symmetric, so (x P) W^T = x (W P)^T: the weight is whitened in place of the rows
            weight = (weight.float() @ self.whitening).to(weight.dtype)
        if weight.dtype != torch.float32:
            return _ReadAndMultiply.apply(weight, self)[0]
        scaled = weight * self.scale
        out, present = _ReadAndMultiply.apply(scaled, self)
        return (out - scaled @ self.mean) * present[:, None]

    def chunks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yields chunks of rows that fit the CPU's caches (or 64 MiB on another device): their slice of `places`, the rows, their presence.

        float32 rows are raw. Rows of a smaller dtype are standardised first, since raw rows differ in digits that it does not have.
        """
        largest = PRODUCT_BYTES if self.mean.device.type == "cpu" else CHUNK_BYTES
        size = max(1, largest // (4 * max(self.mean.numel(), 1)))
        for first in range(0, self.places.numel(), size):
            here = slice(first, first + size)
            rows, present = self.read(self.places[here])
            rows, present = rows.to(self.mean.device, non_blocking=True).float(), present.to(self.mean.device)
            if dtype != torch.float32:
                rows = ((rows - self.mean).mul_(self.scale).mul_(present[:, None])).to(dtype)
            yield here, rows, present


class _ReadAndMultiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, weight: Tensor, lazy: LazyRows) -> tuple[Tensor, Tensor]:
        ctx.lazy = lazy
        out = weight.new_empty(lazy.places.numel(), weight.shape[0])
        present = weight.new_empty(lazy.places.numel())
        for here, rows, is_present in lazy.chunks(weight.dtype):
            torch.mm(rows, weight.T, out=out[here])
            present[here] = is_present.to(present.dtype)
        ctx.mark_non_differentiable(present)
        return out, present

    @staticmethod
    def backward(ctx: Context, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        total = torch.zeros(grad.shape[1], ctx.lazy.mean.numel(), device=grad.device)
        for here, rows, _ in ctx.lazy.chunks(grad.dtype):
            if grad.dtype == torch.float32:
                total.addmm_(grad[here].T, rows)
            else:
                total += grad[here].T @ rows
        return total.to(grad.dtype), None


def principal_axes(moments: FeatureMoments, standardisation: Standardisation, num_components: int) -> Tensor:
    """Computes the exact PCA of the standardised rows from their streamed moments.

    The sign of each axis is fixed so that its entry of largest magnitude is positive; axes beyond the rank are zero.

    Args:
        moments: Moments of the raw rows, summed over all shards.
        standardisation: Standardisation of the rows, without whitening.
        num_components: The number of axes.

    Returns:
        float64 [dim, num_components]; projections are `standardised_rows @ axes`.
    """
    values, vectors = torch.linalg.eigh(moments.upper_covariance(standardisation.scale), UPLO="U")
    values, vectors = values.flip(0), vectors[:, -num_components:].flip(1)
    kept = min(num_components, int((values > 1e-10 * values[0].clamp(min=1e-300)).sum()))
    axes = torch.zeros(vectors.shape[0], num_components, dtype=torch.float64, device=vectors.device)
    best = vectors[:, :kept]
    signs = best.gather(0, best.abs().argmax(0, keepdim=True)).sign()
    axes[:, :kept] = best * signs
    return axes
