"""The train graph on disk: neighbours of every user and item in the dataset's order, streamed from the interactions in bounded memory.

Memory: pointers of all nodes, and `SORT_PAIRS` pairs at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.sides import ITEMS, USERS
from .dataset import Dataset
from .external import grouped
from .flat_files import map_array

READ_PAIRS = 1 << 20
SORT_PAIRS = 1 << 24
SCRATCH = ".users-by-item.i32"


@dataclass(frozen=True)
class Rows:
    """Neighbours of every node of one side by dataset index, on disk.

    Attributes:
        pointers: int64 [n + 1]; the neighbours of node k are `columns[pointers[k] : pointers[k + 1]]`.
        columns: Memory-mapped int32 [num_edges], dataset indices of the other side, ascending within a row.
    """

    pointers: np.ndarray
    columns: np.ndarray

    def __len__(self) -> int:
        return len(self.pointers) - 1

    def degrees(self, ids: np.ndarray) -> np.ndarray:
        """Numbers of neighbours of some nodes, int64 [n].

        Args:
            ids: integers [n], dataset indices.
        """
        return self.pointers[ids + 1] - self.pointers[ids]

    def gather(self, ids: np.ndarray) -> np.ndarray:
        """Neighbours of some nodes, int32, one row after the other.

        Args:
            ids: integers [n], dataset indices.
        """
        first, degrees = self.pointers[ids], self.degrees(ids)
        shift = first - np.cumsum(degrees) + degrees
        return self.columns[np.arange(int(degrees.sum())) + np.repeat(shift, degrees)]


def runs(pointers: np.ndarray, max_edges: int, max_rows: int) -> Iterator[tuple[int, int]]:
    """Cuts the rows of a CSR matrix into runs [first, last) of at most so many edges and rows; a row with more edges is one alone.

    Args:
        pointers: int64 [n + 1], of the matrix.
        max_edges, max_rows: Limits of a run.
    """
    first, count = 0, len(pointers) - 1
    while first < count:
        fitting = int(np.searchsorted(pointers, pointers[first] + max_edges, side="right")) - 1
        last = max(first + 1, min(fitting, first + max_rows, count))
        yield first, last
        first = last


def write_rows(dataset: Dataset, folder: Path) -> tuple[Rows, Rows]:
    """Writes examples/, and the same pairs by item to the file `SCRATCH`: an external sort in buckets of items.

    Args:
        dataset: Its train interactions, in (user, item) order.
        folder: The graph/ artifact.

    Returns:
        The neighbours of all users and of all items, memory-mapped.
    """
    examples = folder / "examples"
    examples.mkdir()
    pointers = np.zeros(dataset.num_users + 1, np.int64), np.zeros(dataset.num_items + 1, np.int64)
    with open(examples / "items.i32", "wb") as out:
        for users, items in dataset.pair_chunks("train", READ_PAIRS):
            first = int(users[0])
            counts = np.bincount(users - first)
            pointers[USERS][1 + first : 1 + first + len(counts)] += counts
            np.add.at(pointers[ITEMS][1:], items, 1)
            out.write(np.ascontiguousarray(items, "<i4").data)
    for entries in pointers:
        np.cumsum(entries, out=entries)
    pointers[USERS].astype("<i8", copy=False).tofile(examples / "pointers.i64")
    _sort_by_item(dataset, pointers[ITEMS], folder / SCRATCH)
    return (
        Rows(pointers[USERS], map_array(examples / "items.i32", "<i4")),
        Rows(pointers[ITEMS], map_array(folder / SCRATCH, "<i4")),
    )


def _sort_by_item(dataset: Dataset, pointers: np.ndarray, target: Path) -> None:
    keys = ((items.astype(np.int64) << 32) | users for users, items in dataset.pair_chunks("train", READ_PAIRS))
    with open(target, "wb") as out:
        for run in grouped(keys, lambda keys: keys >> 32, np.diff(pointers), SORT_PAIRS):
            run.sort()
            for start in range(0, len(run), READ_PAIRS):
                out.write((run[start : start + READ_PAIRS] & 0xFFFFFFFF).astype("<i4").data)
