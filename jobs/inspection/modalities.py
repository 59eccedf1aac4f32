"""What a modality's rows are like, and its rows of unit length for cosines; features are streamed, a chunk in memory at a time."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.features import FeatureMoments, Standardisation
from ...core.rows import rownorm
from ...graph_store.dataset import Dataset
from ...graph_store.external import scratch

DIGEST_BYTES = 16


@dataclass(frozen=True)
class ModalityFacts:
    """A modality before anything is learnt from it.

    Attributes:
        dim: Columns.
        share_present: Share of the items that have a row.
        num_duplicates: Rows that repeat an earlier one, value by value.
        num_constant_rows: Rows whose columns all have one value, such as rows of zeros.
        num_constant_columns: Columns that have one value in all rows.
        effective_dim: (Σ λ)² / Σ λ² over the eigenvalues of the standardised columns' covariance: as many directions of equal variance
            would make cosines as noisy; 0 where all columns are constant.
    """

    dim: int
    share_present: float
    num_duplicates: int
    num_constant_rows: int
    num_constant_columns: int
    effective_dim: float


def modality_facts(dataset: Dataset, modality: str) -> tuple[ModalityFacts, FeatureMoments]:
    """Reads a modality once; returns its facts and the moments of its rows."""
    info = dataset.modalities[modality]
    moments, digests, num_constant = FeatureMoments.zeros(info.dim), [], 0
    for _, rows, present in dataset.feature_chunks(modality):
        moments.add(torch.from_numpy(rows), torch.from_numpy(present))
        given = rows[present] + rows.dtype.type(0)  # so that -0 and 0 are one value
        if info.dim > 1:
            num_constant += int((given == given[:, :1]).all(1).sum())
        digests.append(b"".join(hashlib.blake2b(row.tobytes(), digest_size=DIGEST_BYTES).digest() for row in given))
    distinct = np.unique(np.frombuffer(b"".join(digests), f"V{DIGEST_BYTES}"))
    count = int(moments.count)
    scale = Standardisation.from_moments(moments).scale
    upper = moments.upper_covariance(scale).triu()
    squares = 2 * upper.square().sum() - upper.diagonal().square().sum()
    facts = ModalityFacts(
        info.dim,
        count / dataset.num_items,
        count - len(distinct),
        num_constant,
        int((scale == 0).sum()),
        float(upper.trace() ** 2 / squares) if squares > 0 else 0.0,
    )
    return facts, moments


def unit_rows(dataset: Dataset, modality: str, moments: FeatureMoments, whiten: bool) -> Tensor:
    """Standardises a modality as training does, and scales its rows to unit length.

    Args:
        dataset: With the modality.
        modality: Its name.
        moments: Of its rows.
        whiten: Whether columns are decorrelated too, as by teacher.whiten.

    Returns:
        float32 [num_items, dim], zeros where an item has no row; mapped from a scratch file.
    """
    standard = Standardisation.from_moments(moments)
    if whiten:
        standard = standard.whitened(moments)
    made = scratch(np.float32, dataset.num_items, dataset.modalities[modality].dim)
    for start, rows, present in dataset.feature_chunks(modality):
        made[start : start + len(rows)] = rownorm(standard.apply(torch.from_numpy(rows), torch.from_numpy(present))).numpy()
    return torch.from_numpy(made)
