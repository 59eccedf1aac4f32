"""The feature rows of the items that a worker owns: all of them at once, or some at a time from the parts' files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .feature_rows import map_features
from .ownership import Piece


@dataclass(frozen=True)
class ItemShard:
    """The items whose features one worker owns, with their features.

    Attributes:
        rows: Dataset indices of the items, int64 [n].
        features: Raw rows by modality, numpy [n, d_m], float16 or float32; memory-mapped where they lie on this host and are not int8.
        present: bool [n] by modality.
    """

    rows: Tensor
    features: dict[str, np.ndarray]
    present: dict[str, Tensor]


class OwnFeatures:
    """Raw rows of one modality for the items that a worker owns, memory-mapped from the parts.

    Args:
        pieces: The worker's pieces of the items.
        folder, manifest: The graph/ artifact.
        modality: Which one.

    Attributes:
        dim: Numbers in a row.
    """

    def __init__(self, pieces: Sequence[Piece], folder: Path, manifest: dict, modality: str) -> None:
        self.dim: int = manifest["modalities"][modality]["dim"]
        self._rows = [map_features(folder, manifest, piece.part, modality)[piece.begin : piece.end] for piece in pieces]
        self._ends = torch.tensor([0, *map(len, pieces)]).cumsum(0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Reads rows [n, dim] in the stored type (int8 rows dequantised to float32) and their presence, bool [n].

        Args:
            places: int64 [n], places among the items that the worker owns.
        """
        if len(self._rows) == 1:
            return self._rows[0].read(places)
        dtype = self._rows[0].dtype if self._rows else torch.float32
        rows, present = torch.zeros(places.numel(), self.dim, dtype=dtype), torch.zeros(places.numel(), dtype=torch.bool)
        which = torch.searchsorted(self._ends, places, right=True) - 1
        for piece, own in enumerate(self._rows):
            chosen = (which == piece).nonzero().squeeze(1)
            rows[chosen], present[chosen] = own.read(places[chosen] - self._ends[piece])
        return rows, present
