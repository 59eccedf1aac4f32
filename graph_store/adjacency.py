"""The train graph on disk: neighbours of every user and item in the dataset's order, streamed from the interactions in bounded memory.

Memory: pointers of all nodes, and `SORT_PAIRS` pairs at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from .dataset import Dataset
from .external import grouped

USER, ITEM = "user", "item"
KINDS = (USER, ITEM)  # in the order of DGL's type ids
OTHER = {USER: ITEM, ITEM: USER}
READ_PAIRS = 1 << 20
SORT_PAIRS = 1 << 24
SCRATCH = ".users-by-item.i32"


@dataclass(frozen=True)
class Rows:
    """Neighbours of every node of one kind by dataset index, on disk.

    Attributes:
        pointers: int64 [n + 1].
        columns: Memory-mapped int32 [num_edges], ascending within a row.
    """

    pointers: np.ndarray
    columns: np.ndarray

    def __len__(self) -> int:
        return len(self.pointers) - 1

    def degrees(self, ids: np.ndarray) -> np.ndarray:
        """Of some nodes, int64."""
        return self.pointers[ids + 1] - self.pointers[ids]

    def gather(self, ids: np.ndarray) -> np.ndarray:
        """Neighbours of some nodes, one row after the other, int32."""
        first, degrees = self.pointers[ids], self.degrees(ids)
        shift = first - np.cumsum(degrees) + degrees
        return self.columns[np.arange(int(degrees.sum())) + np.repeat(shift, degrees)]


def runs(pointers: np.ndarray, max_edges: int, max_rows: int) -> Iterator[tuple[int, int]]:
    """Cuts the rows of a CSR matrix into runs [first, last) of at most so many edges and rows; a row with more edges is one alone."""
    first, count = 0, len(pointers) - 1
    while first < count:
        fitting = int(np.searchsorted(pointers, pointers[first] + max_edges, side="right")) - 1
        last = max(first + 1, min(fitting, first + max_rows, count))
        yield first, last
        first = last


def write_rows(dataset: Dataset, folder: Path) -> dict[str, Rows]:
    """Writes examples/, and the same pairs by item to the file `SCRATCH`: an external sort in buckets of items.

    Args:
        dataset: Its train interactions, in (user, item) order.
        folder: The graph/ artifact.

    Returns:
        The neighbours of all users and of all items, memory-mapped.
    """
    examples = folder / "examples"
    examples.mkdir()
    pointers = {kind: np.zeros(size + 1, np.int64) for kind, size in ((USER, dataset.num_users), (ITEM, dataset.num_items))}
    with open(examples / "items.i32", "wb") as out:
        for users, items in dataset.pair_chunks("train", READ_PAIRS):
            first = int(users[0])
            counts = np.bincount(users - first)
            pointers[USER][1 + first : 1 + first + len(counts)] += counts
            np.add.at(pointers[ITEM][1:], items, 1)
            out.write(np.ascontiguousarray(items, "<i4").data)
    for entries in pointers.values():
        np.cumsum(entries, out=entries)
    pointers[USER].astype("<i8", copy=False).tofile(examples / "pointers.i64")
    _sort_by_item(dataset, pointers[ITEM], folder / SCRATCH)
    return {
        USER: Rows(pointers[USER], map_array(examples / "items.i32", "<i4")),
        ITEM: Rows(pointers[ITEM], map_array(folder / SCRATCH, "<i4")),
    }


def _sort_by_item(dataset: Dataset, pointers: np.ndarray, target: Path) -> None:
    keys = ((items.astype(np.int64) << 32) | users for users, items in dataset.pair_chunks("train", READ_PAIRS))
    with open(target, "wb") as out:
        for run in grouped(keys, lambda keys: keys >> 32, np.diff(pointers), SORT_PAIRS):
            run.sort()
            for start in range(0, len(run), READ_PAIRS):
                out.write((run[start : start + READ_PAIRS] & 0xFFFFFFFF).astype("<i4").data)


def map_array(path: Path, dtype: str, mode: Literal["r", "c"] = "r") -> np.ndarray:
    """A flat file as a memory-mapped array; an empty file as an empty array. With mode "c" what is written stays in this process."""
    return np.memmap(path, dtype, mode) if path.stat().st_size else np.zeros(0, dtype)


def mapped(path: Path, dtype: str) -> torch.Tensor:
    """A flat file as a memory-mapped tensor; what is written to it stays in this process."""
    return torch.from_numpy(map_array(path, dtype, "c"))
