"""Feature rows of a part in flat files: as the dataset has them, or as int8 with a scale for each row; read through memory maps.

With `graph.features=int8` a row x is stored as q = round(x / scale), scale = max|x| / 127 (symmetric), and read as q · scale in float32
(float16 overflows at 65,504): |x - q · scale| <= scale / 2 = max|x| / 254, up to the rounding of float32.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .config import GraphConfig
from .dataset import Dataset, ModalityInfo
from .flat_files import map_array

SCALE_BYTES = 4
STEPS = 127


@dataclass(frozen=True)
class FeatureRows:
    """Rows of one modality, memory-mapped.

    Attributes:
        rows: float16, float32 or int8 [n, dim].
        present: bool [n].
        scale: float32 [n] where the rows are int8, else None.
    """

    rows: np.ndarray
    present: np.ndarray
    scale: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, run: slice) -> "FeatureRows":
        return FeatureRows(self.rows[run], self.present[run], None if self.scale is None else self.scale[run])

    @property
    def dtype(self) -> torch.dtype:
        """Of what `read` and `values` return: the stored type, float32 for int8."""
        return torch.float32 if self.scale is not None else torch.from_numpy(self.rows[:0]).dtype

    def read(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Some rows [n, dim], dequantised, and their presence, bool [n].

        Args:
            places: int64 [n].
        """
        rows, present = (torch.index_select(torch.from_numpy(x), 0, places) for x in (self.rows, self.present))
        if self.scale is None:
            return rows, present
        return rows.float().mul_(torch.index_select(torch.from_numpy(self.scale), 0, places)[:, None]), present

    def values(self) -> np.ndarray:
        """All rows [n, dim]: the memory map itself, or a dequantised copy."""
        return self.rows if self.scale is None else self.rows * self.scale[:, None]

    def copy(self) -> "FeatureRows":
        """The same in memory, to be sent."""
        return FeatureRows(np.array(self.rows), np.array(self.present), None if self.scale is None else np.array(self.scale))


def quantise(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 rows [n, dim] and float32 scales [n] of float16 or float32 rows; the scale of a row of zeros is the smallest normal number."""
    values = rows.astype(np.float32, copy=False)
    scale = np.maximum(np.abs(values).max(1) / np.float32(STEPS), np.finfo(np.float32).tiny)
    return np.rint(values / scale[:, None]).astype(np.int8), scale


def row_bytes(info: ModalityInfo, features: str) -> int:
    """Bytes of one stored row."""
    return info.dim + SCALE_BYTES if features == "int8" else info.dim * np.dtype(info.dtype).itemsize


def present_bytes(dataset: Dataset, features: str) -> np.ndarray:
    """Bytes of every item's present rows over all modalities, int64 [num_items]; streams the modalities that lack rows."""
    total = np.zeros(dataset.num_items, np.int64)
    for modality, info in dataset.modalities.items():
        if not info.missing_rows:
            total += row_bytes(info, features)
            continue
        for start, rows, present in dataset.feature_chunks(modality):
            total[start : start + len(rows)] += present * row_bytes(info, features)
    return total


def write_features(dataset: Dataset, folder: Path, modality: str, parts: np.ndarray, config: GraphConfig) -> dict:
    """Each part's rows in the order of its own items, streamed; returns the modality's entry in the manifest.

    Args:
        folder: The graph/ artifact.
        parts: int [num_items], who owns an item.
    """
    info, is_int8, largest = dataset.modalities[modality], config.features == "int8", 0.0
    endings = ("rows", "present", "scale") if is_int8 else ("rows", "present")
    with contextlib.ExitStack() as stack:
        files = []
        for part in range(config.num_parts):
            target = folder / f"part{part}" / "features"
            target.mkdir(exist_ok=True)
            files.append([stack.enter_context(open(target / f"{modality}.{ending}", "wb")) for ending in endings])
        for start, rows, present in dataset.feature_chunks(modality):
            columns = [rows, present.astype(np.uint8)]
            if is_int8:
                columns[0], scale = quantise(rows)
                columns.append(scale.astype("<f4", copy=False))
                largest = max(largest, float(scale.max(initial=0)))
            for part, outs in enumerate(files):
                own = parts[start : start + len(rows)] == part
                for out, column in zip(outs, columns):
                    out.write(np.ascontiguousarray(column[own]).data)
    if not is_int8:
        return {"dim": info.dim, "dtype": info.dtype}
    return {"dim": info.dim, "dtype": "int8", "source_dtype": info.dtype, "max_error": largest / 2}


def map_features(folder: Path, manifest: dict, part: int, modality: str) -> FeatureRows:
    """A part's feature rows of one modality, memory-mapped.

    Args:
        folder, manifest: The graph/ artifact.
    """
    info, base = manifest["modalities"][modality], folder / f"part{part}" / "features"
    present = np.fromfile(base / f"{modality}.present", dtype=np.uint8).astype(bool)
    rows = np.zeros((0, info["dim"]), info["dtype"])
    if len(present):
        rows = np.memmap(base / f"{modality}.rows", dtype=info["dtype"], mode="c", shape=(len(present), info["dim"]))
    return FeatureRows(rows, present, map_array(base / f"{modality}.scale", "<f4", "c") if info["dtype"] == "int8" else None)
