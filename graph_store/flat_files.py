"""Flat files: arrays of one type without a header, little-endian, read through memory maps."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor


def map_array(path: Path, dtype: str, mode: Literal["r", "c"] = "r") -> np.ndarray:
    """Maps a flat file to memory as an array [n]; an empty file gives an empty array.

    Args:
        path: The file.
        dtype: Type of its entries, such as "<i4".
        mode: "r": the array cannot be written to; "c": what is written stays in this process.
    """
    return np.memmap(path, dtype, mode) if path.stat().st_size else np.zeros(0, dtype)


def map_tensor(path: Path, dtype: str) -> Tensor:
    """Maps a flat file to memory as a tensor [n]; what is written to it stays in this process."""
    return torch.from_numpy(map_array(path, dtype, "c"))


def write_arrays(path: Path, dtype: str, arrays: Iterable[np.ndarray]) -> None:
    """Writes arrays, converted to `dtype`, one after the other into a new flat file."""
    with open(path, "wb") as out:
        for array in arrays:
            out.write(array.astype(dtype, copy=False).data)
