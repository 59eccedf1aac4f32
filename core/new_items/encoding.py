"""Turns raw feature rows into what the map of new items multiplies: standardised rows of unit length, centred (docs/method.md 11.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..features import FeatureMoments, Standardisation, chunk_rows
from ..rows import rownorm

RawRows = tuple[Tensor, Tensor]  # raw rows [n, d_m] of any float dtype, and which of them are present, bool [n]


@dataclass(frozen=True)
class Encoding:
    """Encodes rows of one modality: z = rownorm((x - mean) * scale [whitening]) - centre; a missing row becomes zero.

    Attributes:
        standardisation: The columns' standardisation, with whitening where it was chosen.
        centre: float64 [d_m], the mean of the present unit rows that the map was fitted on.
    """

    standardisation: Standardisation
    centre: Tensor

    @property
    def dim(self) -> int:
        """Returns d_m, the number of columns of the raw rows."""
        return self.centre.numel()

    @staticmethod
    def of(raw: RawRows, whiten: bool) -> "Encoding":
        """Returns the encoding that some rows define; those that are not present count for nothing.

        Args:
            raw: Raw rows of the modality with their presence; at least one is present.
            whiten: Whether the columns are decorrelated before the rows are brought to unit length.
        """
        rows, present = raw
        moments = FeatureMoments.of(rows, present)
        standardisation = _with_unit_mean(Standardisation.from_moments(moments), raw)
        if whiten:
            standardisation = _with_unit_mean(standardisation.whitened(moments), raw)
        total, size = torch.zeros(rows.shape[1], dtype=torch.float64), chunk_rows(rows.shape[1])
        for start in range(0, rows.shape[0], size):
            here = slice(start, start + size)
            total += rownorm(standardisation.apply(rows[here], present[here])).double().sum(0)
        return Encoding(standardisation, total / present.sum())

    def encode(self, raw: RawRows) -> Tensor:
        """Encodes raw rows, a chunk at a time; returns float32 [n, d_m], zeros where a row is not present."""
        rows, present = raw
        out, size = torch.empty(rows.shape, dtype=torch.float32), chunk_rows(rows.shape[1])
        for start in range(0, rows.shape[0], size):
            here = slice(start, start + size)
            unit = rownorm(self.standardisation.apply(rows[here], present[here]))
            out[here] = (unit - self.centre.float()) * present[here, None]
        return out

    def tensors(self) -> dict[str, Tensor]:
        """Returns the encoding's tensors by name."""
        return {**self.standardisation.tensors(), "centre": self.centre}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> "Encoding":
        """Returns the encoding whose `tensors` these are."""
        return Encoding(Standardisation(tensors["mean"], tensors["scale"], tensors.get("whitening")), tensors["centre"])


def _with_unit_mean(standardisation: Standardisation, raw: RawRows) -> Standardisation:
    return standardisation.with_mean_row_norm(standardisation.sum_of_row_norms(*raw) / raw[1].sum())
