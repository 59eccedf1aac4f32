"""Work on more rows than memory holds: arrays that grow on disk, and rows grouped by a key in runs that fit."""

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from ..core.errors import InputError


class Spool:
    """A one-dimensional array that grows on disk, in a file without a name: it is gone with the last array that maps it.

    Args:
        dtype: Of the entries.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object

    def append(self, values: np.ndarray) -> None:
        """Adds entries, converted to the spool's type."""
        self._file.write(np.ascontiguousarray(values, self._dtype).data)

    def array(self) -> np.ndarray:
        """All entries [n], memory-mapped, read-only."""
        self._file.flush()
        return np.memmap(self._file, self._dtype, "r") if self._file.tell() else np.zeros(0, self._dtype)


def scratch(dtype: DTypeLike, *shape: int, folder: Path | None = None) -> np.ndarray:
    """Zeros in a file without a name, gone when the array is: its pages count as cache, not as this process's memory.

    Args:
        folder: Where the file lies, the system's folder for temporary files where not given.

    Raises:
        InputError: the folder has no room for it.
    """
    if 0 in shape:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:  # the mapping keeps it
        size = math.prod(shape) * np.dtype(dtype).itemsize
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # a mapped page without room on the disk would end the process
        except OSError as error:
            where = f"{folder}" if folder is not None else f"{tempfile.gettempdir()}, the folder for temporary files (TMPDIR)"
            raise InputError(f"{where} has no room for a scratch file of {size / 2**20:,.1f} MiB: {error.strerror}; free some") from error
        return np.memmap(file, dtype, "w+", shape=shape)


def key_runs(counts: np.ndarray, most: int) -> np.ndarray:
    """Cuts keys 0..n into runs of about equally many rows, at most about `most`; one key alone may have more.

    Args:
        counts: Rows of every key, int64 [n].

    Returns:
        int64: the last key + 1 of every run but the last.
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    num_runs = max(1, -(-total // most))
    return np.unique(np.searchsorted(ends, np.arange(1, num_runs) * (total / num_runs), side="right"))


def grouped(chunks: Iterable[np.ndarray], key: Callable[[np.ndarray], np.ndarray], counts: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Rows grouped by runs of a key, through files where they are more than `most`.

    Args:
        chunks: Arrays of one type, in any order of the key.
        key: The rows' keys, integers.
        counts: Rows of every key, int64 [n].
        most: Rows in memory at a time, about.

    Yields:
        All rows of the first keys, then of the next ones, ...; within a run in the order they came.
    """
    bounds = key_runs(counts, most)
    if not len(bounds):
        yield np.concatenate(list(chunks))
        return
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(len(bounds) + 1)]
        for chunk in chunks:
            runs = np.searchsorted(bounds, key(chunk), side="right").astype(np.uint16)  # of 16 bits: sorted in linear time
            chunk = chunk[np.argsort(runs, kind="stable")]
            ends = np.cumsum(np.bincount(runs, minlength=len(files)))
            for file, rows in zip(files, np.split(chunk, ends[:-1])):
                file.write(rows.data)
            dtype = chunk.dtype
        for file in files:
            file.seek(0)
            yield np.fromfile(file, dtype)
