"""Where the nodes of a partitioned graph lie: the numbers of users and items in the order of the parts."""

import json
from pathlib import Path

import torch
from torch import Tensor

from ..core.sides import SIDE_NAMES, SIDES, USERS
from .flat_files import map_tensor
from .graph_artifact import GRAPH_NAME


class NodeNumbers:
    """Which part holds a node, and where: from graph/nodes/, memory-mapped.

    Args:
        folder: The graph/ artifact.

    Attributes:
        starts: int64 [2 · num_parts + 1], the first number of part 0's users, its items, part 1's users, ...
        new: By side, the number of every dataset index, int64 [n].
    """

    def __init__(self, folder: Path) -> None:
        node_map = json.loads((folder / f"{GRAPH_NAME}.json").read_text())["node_map"]
        ends = [node_map[side][part][1] for part in range(len(node_map[SIDE_NAMES[USERS]])) for side in SIDE_NAMES]
        self.starts = torch.tensor([0, *ends])
        self.new = [map_tensor(folder / "nodes" / f"{side}.i64", "<i8") for side in SIDE_NAMES]
        sizes = self.starts.diff()
        self._first_places = [torch.cat([sizes.new_zeros(1), sizes[side::2].cumsum(0)]) for side in SIDES]

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return self.starts.numel() // 2

    def size(self, side: int, part: int) -> int:
        """Number of users (or items) that a part holds."""
        return int(self.starts[2 * part + side + 1] - self.starts[2 * part + side])

    def sizes(self, side: int) -> list[int]:
        """Number of users (or items) of every part."""
        return [self.size(side, part) for part in range(self.num_parts)]

    def first_place(self, side: int, part: int) -> int:
        """Number of users (or items) of the parts before one."""
        return int(self._first_places[side][part])

    def locate(self, side: int, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Finds the part of nodes, and their local numbers in it (users before items), int64 [n] each.

        Args:
            side: USERS or ITEMS.
            ids: int64 [n], dataset indices.
        """
        numbers = self.new[side].index_select(0, ids)
        parts = (torch.searchsorted(self.starts, numbers, right=True) - 1) // 2
        return parts, numbers - self.starts[2 * parts]

    def places(self, side: int, ids: Tensor) -> Tensor:
        """Finds the places of nodes among all nodes of their side, in the order of the parts, int64 [n].

        Args:
            side: USERS or ITEMS.
            ids: int64 [n], dataset indices.
        """
        numbers = self.new[side].index_select(0, ids)
        parts = (torch.searchsorted(self.starts, numbers, right=True) - 1) // 2
        return numbers - self.starts[2 * parts + side] + self._first_places[side][parts]
