"""Writes safetensors files larger than memory: their tensors are filled in place, in pages that the system writes out as it needs to."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

_CODES = {"uint8": "U8", "uint16": "U16", "float16": "F16", "int32": "I32", "float32": "F32", "int64": "I64"}


@contextlib.contextmanager
def tensor_file(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> Iterator[dict[str, np.ndarray]]:
    """Creates a safetensors file of tensors that the block fills.

    Args:
        path: The file; one that is there is replaced.
        tensors: By name the NumPy type, one of uint8, uint16, float16, int32, float32 and int64, and the shape.

    Yields:
        The tensors by name, memory-mapped and filled with zeros.
    """
    header: dict[str, dict] = {}
    end = 0
    wide_first = sorted(tensors.items(), key=lambda entry: -np.dtype(entry[1][0]).itemsize)  # so that all are aligned
    for name, (dtype, shape) in wide_first:
        first, end = end, end + np.dtype(dtype).itemsize * math.prod(shape)
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [first, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(begin + end)
    yield {
        name: np.memmap(path, dtype, "r+", begin + header[name]["data_offsets"][0], shape) if math.prod(shape) else np.zeros(shape, dtype)
        for name, (dtype, shape) in tensors.items()
    }
