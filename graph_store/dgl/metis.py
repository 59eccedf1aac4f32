"""METIS, through the DGL wheel, which brings it: a `coarsening.GraphCutter` whose cut is a function of its input."""

import contextlib
import ctypes
from collections.abc import Iterator

import numpy as np
import torch


def cut_with_metis(first: np.ndarray, second: np.ndarray, shares: np.ndarray, count: int) -> np.ndarray:
    """Gives every vertex a part such that few edges lie between parts.

    The order of the rows that DGL makes from pairs differs from call to call, and METIS reads memory that it did not write: so it gets
    sorted rows, and `cleared_memory`, without which the same graph had a dozen different cuts in 25 calls.

    Args:
        first, second: int64 [edges], the ends of every edge; a pair may occur more than once, and then weighs more.
        shares: float64 [n, measures], what the parts are balanced by.
        count: Number of parts.

    Returns:
        The part of every vertex, int32 [n].
    """
    import dgl
    from dgl import backend
    from dgl.partition import _CAPI_DGLMetisPartition_Hetero as metis  # DGL's function takes no weights of one's own

    keys = np.concatenate([first * len(shares) + second, second * len(shares) + first])
    keys.sort()
    rows, columns = np.divmod(keys, len(shares))
    pointers = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(shares)))])
    graph = dgl.graph(("csr", tuple(map(torch.from_numpy, (pointers, columns, np.zeros(0, np.int64))))), num_nodes=len(shares))
    weights = torch.from_numpy(np.rint(shares * 1e9).astype(np.int64)).flatten()
    with cleared_memory():
        parts = metis(graph._graph, count, backend.to_dgl_nd(weights), "recursive", True)
    return backend.from_dgl_nd(parts).numpy().astype(np.int32)


@contextlib.contextmanager
def cleared_memory() -> Iterator[None]:
    """Makes malloc hand out zeroed memory while the block runs (glibc)."""
    libc, perturb = ctypes.CDLL("libc.so.6"), -6  # M_PERTURB: new memory is filled with the complement of the value
    libc.mallopt(perturb, 255)
    try:
        yield
    finally:
        libc.mallopt(perturb, 0)
