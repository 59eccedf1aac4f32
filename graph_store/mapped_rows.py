"""Keeps a split's items of every user in a file that readers map into memory: processes of a host share its pages, and hold none of them.

The file is a safetensors file with the tensors `pointers` int64 [num_users + 1] and `items` int32 [num_interactions], the arrays of a
`Csr` (docs/formats.md).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from ..core.graph import Csr
from ..core.sides import SIDE_NAMES
from ..core.tensor_file import tensor_file

CHUNK_PAIRS = 1 << 20


def rows_name(split: str) -> str:
    """Returns the name of a split's file."""
    return f"{split}.rows.safetensors"


def pair_chunks(path: Path, size: int = CHUNK_PAIRS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reads the users and items of a Parquet file of pairs, int32 [n] each with n from 1 to `size`, in its order."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(size, columns=list(SIDE_NAMES)):
            if batch.num_rows:
                yield tuple(batch[name].to_numpy() for name in SIDE_NAMES)


def write_rows(path: Path, chunks: Iterable[tuple[np.ndarray, np.ndarray]], num_users: int, num_pairs: int) -> None:
    """Writes the rows of all users, a chunk of pairs in memory at a time.

    Args:
        path: The file.
        chunks: Users and items, int32 [n] each, in the order of (user, item).
        num_users: Number of users.
        num_pairs: Number of pairs in all chunks.
    """
    with tensor_file(path, {"pointers": ("int64", (num_users + 1,)), "items": ("int32", (num_pairs,))}) as arrays:
        degrees, first = arrays["pointers"][1:], 0
        for users, items in chunks:
            distinct, counts = np.unique(users, return_counts=True)
            degrees[distinct] += counts
            arrays["items"][first : first + len(items)] = items
            first += len(items)
        np.cumsum(degrees, out=degrees)


def open_rows(path: Path, num_items: int) -> Csr:
    """Maps a file of `write_rows`: columns are int32 and, as the pointers are, on disk until they are read."""
    from safetensors.torch import load_file

    arrays = load_file(str(path))
    return Csr(arrays["pointers"], arrays["items"], num_items)
