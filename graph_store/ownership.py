"""Which worker owns which user and item: one owner for each, who alone writes its rows.

The rule: a part's users belong to the workers on its host, in equal runs, and so do its items; where its host has no worker, they belong to
worker `part % num_workers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.sides import ITEMS, SIDES, USERS
from .flat_files import map_tensor
from .node_numbers import NodeNumbers


@dataclass(frozen=True)
class Piece:
    """A run of one part's users, or of its items, and its owner.

    Attributes:
        part: The part.
        begin, end: Places among the part's users (or items).
        rank: The worker that owns it.
    """

    part: int
    begin: int
    end: int
    rank: int

    def __len__(self) -> int:
        return self.end - self.begin


def owners_of_part(part: int, part_nodes: Sequence[str], worker_nodes: Sequence[str]) -> list[int]:
    """Lists the ranks that own the nodes of a part, in the order of their runs.

    Args:
        part: The part.
        part_nodes: The host of every part, such as its Ray node id.
        worker_nodes: The host of every rank.
    """
    here = [rank for rank, node in enumerate(worker_nodes) if node == part_nodes[part]]
    return here or [part % len(worker_nodes)]


def pieces_of_parts(sizes: Sequence[int], part_nodes: Sequence[str], worker_nodes: Sequence[str]) -> list[Piece]:
    """Cuts the nodes of all parts into pieces with one owner each, in the order of the parts; none is empty.

    Args:
        sizes: Nodes of every part, of one side.
        part_nodes: The host of every part.
        worker_nodes: The host of every rank.
    """
    pieces = []
    for part, size in enumerate(sizes):
        ranks = owners_of_part(part, part_nodes, worker_nodes)
        for place, rank in enumerate(ranks):
            begin, end = (size * k // len(ranks) for k in (place, place + 1))
            if begin < end:
                pieces.append(Piece(part, begin, end, rank))
    return pieces


class Owners:
    """Finds the owner of every user and item.

    Args:
        numbers: Where the nodes lie.
        part_nodes: The host of every part.
        worker_nodes: The host of every rank.

    Attributes:
        pieces: By side, all pieces in the order of the parts.
    """

    def __init__(self, numbers: NodeNumbers, part_nodes: Sequence[str], worker_nodes: Sequence[str]) -> None:
        self.numbers = numbers
        self.pieces = [pieces_of_parts(numbers.sizes(side), part_nodes, worker_nodes) for side in SIDES]
        # Of every piece, by side: the number of its first node, its owner, and the place of its first node among all that the owner owns.
        self._starts, self._ranks, self._firsts = [], [], []
        for side, pieces in enumerate(self.pieces):
            owned, firsts = [0] * len(worker_nodes), []
            for piece in pieces:
                firsts.append(owned[piece.rank])
                owned[piece.rank] += len(piece)
            self._starts.append(torch.tensor([int(numbers.starts[2 * piece.part + side]) + piece.begin for piece in pieces]))
            self._ranks.append(torch.tensor([piece.rank for piece in pieces]))
            self._firsts.append(torch.tensor(firsts))

    def find(self, side: int, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Finds the owner of each node, and its place among all that the owner owns, int64 [n] each.

        Args:
            side: USERS or ITEMS.
            ids: int64 [n], dataset indices.
        """
        numbers = self.numbers.new[side].index_select(0, ids)
        piece = torch.searchsorted(self._starts[side], numbers, right=True) - 1
        return self._ranks[side][piece], self._firsts[side][piece] + numbers - self._starts[side][piece]

    def own(self, side: int, rank: int) -> list[Piece]:
        """Lists a worker's pieces of the users or items, in the order of its places."""
        return [piece for piece in self.pieces[side] if piece.rank == rank]

    def own_ids(self, side: int, rank: int, folder: Path) -> Tensor:
        """Reads the dataset indices of what a worker owns, int64 [n], memory-mapped where it is one piece.

        Args:
            side: USERS or ITEMS.
            rank: The worker.
            folder: The graph/ artifact, with the parts that the worker owns rows of.
        """
        return self._own_values(side, rank, folder, "orig.i64", "<i8")

    def own_degrees(self, side: int, rank: int, folder: Path) -> Tensor:
        """Reads the numbers of train interactions of what a worker owns, int32 [n]; arguments as in `own_ids`."""
        return self._own_values(side, rank, folder, "degrees.i32", "<i4")

    def _own_values(self, side: int, rank: int, folder: Path, name: str, dtype: str) -> Tensor:
        values = []
        for piece in self.own(side, rank):
            first = self.numbers.size(USERS, piece.part) if side == ITEMS else 0
            values.append(map_tensor(folder / f"part{piece.part}" / name, dtype)[first + piece.begin : first + piece.end])
        return values[0] if len(values) == 1 else torch.cat([torch.from_numpy(np.zeros(0, dtype)), *values])
