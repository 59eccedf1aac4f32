"""Computes standardisation and the prompt's constants from raw feature rows, in the same passes for both engines (docs/method.md 1.1).

Every worker streams the rows of its own items; sums over the workers are taken in float64.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..core.features import FeatureMoments, Standardisation, chunk_rows, principal_axes
from .worker import Worker


class RawRows(Protocol):
    """Describes raw rows of one modality for a worker's own items."""

    @property
    def dim(self) -> int: ...

    def __len__(self) -> int: ...

    def read(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Returns rows [n, dim] of any float dtype and their presence, bool [n], at places among the worker's own items, int64 [n]."""
        ...


@dataclass(frozen=True)
class FeatureConstants:
    """Holds what is computed from the features of all items before training starts.

    Attributes:
        standardisation: Standardisation by modality.
        gram: G_m = h_I^T X_m by modality, float32 [d, d_m]; empty for a teacher without tokens.
        column_sums: s_m = X_m^T 1 by modality, float32 [d_m]; empty for a teacher without tokens.
    """

    standardisation: dict[str, Standardisation]
    gram: dict[str, Tensor]
    column_sums: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """Returns mean, scale and whitening of every modality by name, for the teacher's artifact."""
        return {
            f"standardisation.{m}.{part}": tensor.contiguous()
            for m, standard in self.standardisation.items()
            for part, tensor in standard.tensors().items()
        }


def runs(count: int, rows: int) -> list[Tensor]:
    """Returns the places 0 to count - 1 in runs of at most `rows`, int64."""
    return [torch.arange(first, min(first + rows, count)) for first in range(0, count, max(rows, 1))]


def prepare_features(
    worker: Worker,
    features: Mapping[str, RawRows],
    dim: int,
    whiten: bool,
    token_rows: int,
    write_tokens: Callable[[Tensor, Tensor], None],
) -> FeatureConstants:
    """Streams the rows for moments, then for row norms, then for hard tokens h_I with G_m and s_m; a collective call.

    Args:
        worker: This worker.
        features: Raw rows of this worker's own items by modality, all of the same items.
        dim: d, the number of columns of the tokens; 0 for a teacher without tokens.
        whiten: Whether standardised rows are decorrelated. Tokens come from the rows before that, since whitened rows have no ordered axes.
        token_rows: The number of items whose tokens are computed at a time.
        write_tokens: Stores the tokens h_I, float32 [n, dim], of own items at places, int64 [n].
    """
    plain: dict[str, Standardisation] = {}
    standardisation: dict[str, Standardisation] = {}
    axes: dict[str, Tensor] = {}
    for modality, raw in features.items():
        moments = _moments(worker, raw)
        plain[modality] = standardisation[modality] = _with_unit_rows(worker, raw, Standardisation.from_moments(moments), moments)
        if dim:
            axes[modality] = principal_axes(moments, plain[modality], dim)
        if whiten:
            standardisation[modality] = _with_unit_rows(worker, raw, plain[modality].whitened(moments), moments)
    if not dim:
        return FeatureConstants(standardisation, {}, {})
    gram = {m: torch.zeros(dim, raw.dim, dtype=torch.float64) for m, raw in features.items()}
    sums = {m: torch.zeros(raw.dim, dtype=torch.float64) for m, raw in features.items()}
    for places in runs(len(next(iter(features.values()))), token_rows) if features else ():
        tokens, num_present = torch.zeros(places.numel(), dim, dtype=torch.float64), torch.zeros(places.numel(), 1)
        for modality, raw in features.items():
            rows, present = raw.read(places)
            tokens += plain[modality].apply(rows, present).double() @ axes[modality]
            num_present += present[:, None]
        tokens /= num_present.clamp(min=1)
        write_tokens(places, tokens.float())
        for modality, raw in features.items():
            x = standardisation[modality].apply(*raw.read(places)).double()
            gram[modality] += tokens.T @ x
            sums[modality] += x.sum(0)
    worker.sum_([*gram.values(), *sums.values()])
    return FeatureConstants(standardisation, {m: g.float() for m, g in gram.items()}, {m: s.float() for m, s in sums.items()})


def _moments(worker: Worker, raw: RawRows) -> FeatureMoments:
    moments = FeatureMoments.zeros(raw.dim)
    for places in runs(len(raw), chunk_rows(raw.dim)):
        moments.add(*raw.read(places))
    worker.sum_(moments.tensors())
    return moments


def _with_unit_rows(worker: Worker, raw: RawRows, standard: Standardisation, moments: FeatureMoments) -> Standardisation:
    """Returns the standardisation with the mean norm of the present rows brought to one; collective."""
    norms = torch.zeros(1, dtype=torch.float64)
    for places in runs(len(raw), chunk_rows(raw.dim)):
        norms += standard.sum_of_row_norms(*raw.read(places))
    worker.sum_([norms])
    return standard.with_mean_row_norm(norms[0] / moments.count.clamp(min=1))
