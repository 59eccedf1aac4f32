"""Writes safetensors files larger than memory: their tensors are filled in place, in pages that the system writes out as it needs to."""

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import InputError

_CODES = {  # by NumPy's name of a type, in the order in which safetensors lays tensors out: wide ones first, so that all are aligned
    "int64": "I64",
    "float64": "F64",
    "float32": "F32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "uint16": "U16",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_STORED_AS = {"bfloat16": "int16"}  # the bits of a type that NumPy does not have
PIECE_BYTES = 1 << 24  # of a tensor that are copied at a time


@contextlib.contextmanager
def tensor_file(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> Iterator[dict[str, np.ndarray]]:
    """Creates a safetensors file of tensors that the block fills.

    Args:
        path: The file; one that is there is replaced.
        tensors: By name the type, as NumPy and torch call it, and the shape.

    Yields:
        The tensors by name, memory-mapped and filled with zeros; bfloat16 as int16 of the same bits.

    Raises:
        OSError: the file system has no room for the file.
    """
    header: dict[str, dict] = {}
    order, end = list(_CODES), 0
    types = {name: np.dtype(_STORED_AS.get(dtype, dtype)) for name, (dtype, _) in tensors.items()}
    for name in sorted(tensors, key=lambda name: (order.index(tensors[name][0]), name)):
        dtype, shape = tensors[name]
        first, end = end, end + types[name].itemsize * math.prod(shape)
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [first, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        _reserve(file.fileno(), begin + end)
    yield {
        name: np.memmap(path, types[name], "r+", begin + header[name]["data_offsets"][0], shape)
        if math.prod(shape)
        else np.zeros(shape, types[name])
        for name, (_, shape) in tensors.items()
    }


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors, which may be memory-mapped, as a safetensors file without a copy of any of them in memory.

    Args:
        path: The file; one that is there is replaced.
        tensors: By name, on the CPU; of any strides.

    Raises:
        OSError: the file system has no room for the file.
    """
    with tensor_file(path, {name: (type_name(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}) as out:
        for name, tensor in tensors.items():
            copy_rows(tensor, out[name])


def type_name(tensor: Tensor) -> str:
    """Returns the type of a tensor as `tensor_file` calls it."""
    return str(tensor.dtype).removeprefix("torch.")


def copy_rows(source: Tensor, target: np.ndarray) -> None:
    """Copies a tensor into an array of a file of tensors, a piece at a time; the types may differ where NumPy has them."""
    source = source.detach().view(torch.int16) if type_name(source) in _STORED_AS else source.detach()
    if not source.dim():
        target[...] = source.numpy()
        return
    rows = max(1, PIECE_BYTES // (source.element_size() * max(1, math.prod(source.shape[1:]))))
    for first in range(0, source.shape[0], rows):
        target[first : first + rows] = source[first : first + rows].numpy()


def check_finite(rows: Tensor, what: str) -> None:
    """Checks that a matrix has neither infinite values nor NaN, a piece at a time: a ranking by such scores would have no meaning.

    Args:
        rows: Numbers [n, ...], which may be memory-mapped; integers pass.
        what: Names them in the message.

    Raises:
        InputError: a value is not finite; the message names the first such row.
    """
    if not rows.is_floating_point() or not rows.numel():
        return
    step = max(1, PIECE_BYTES // (rows.element_size() * max(1, math.prod(rows.shape[1:]))))
    for first in range(0, rows.shape[0], step):
        piece = rows.detach()[first : first + step]
        if not math.isfinite(float(piece.sum(dtype=torch.float64))):  # of finite float32 values it is finite, and fast
            wrong = piece.reshape(len(piece), -1).isfinite().all(1).logical_not().nonzero()
            if len(wrong):  # a sum of float64 can be infinite by itself
                row = first + int(wrong[0])
                raise InputError(f"{what}: row {row} has a value that is infinite or NaN; train again with smaller learning rates")


def _reserve(file: int, size: int) -> None:
    """Gives an open file its size. Room is taken at once where the system can: a full disk is an error here, and kills no process later."""
    try:
        os.posix_fallocate(file, 0, size)
    except AttributeError:  # of another system than Linux
        os.ftruncate(file, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # what file systems answer that cannot reserve room
            raise
        os.ftruncate(file, size)
