"""Where the nodes of a partitioned graph are: each part's own users and items, and the numbers of all nodes in the order of the parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.sides import SIDE_NAMES, SIDES


@dataclass(frozen=True)
class Layout:
    """The nodes of every part, and the numbering of all nodes: part 0's users, its items, part 1's users, ...

    Attributes:
        own: By side and part, the dataset indices of the part's own nodes, int64, ascending.
        starts: int64 [2 · num_parts + 1], the first number of part 0's users, its items, part 1's users, ...
        new: By side, the number of every dataset index, int64 [n], memory-mapped: graph/nodes/.
    """

    own: list[list[np.ndarray]]
    starts: np.ndarray
    new: list[np.ndarray]

    @staticmethod
    def of(parts: Sequence[np.ndarray], count: int, folder: Path) -> "Layout":
        """Numbers the nodes, and writes nodes/ of the artifact.

        Args:
            parts: By side, the part of every node, int16 [n].
            count: Number of parts.
            folder: The graph/ artifact.
        """
        (folder / "nodes").mkdir()
        ends = [np.cumsum(np.bincount(of_side, minlength=count))[:-1] for of_side in parts]
        own = [np.split(np.argsort(of_side, kind="stable"), ends[side]) for side, of_side in enumerate(parts)]
        sizes = np.array([[len(own[side][part]) for side in SIDES] for part in range(count)])
        starts = np.concatenate([[0], np.cumsum(sizes.ravel())])
        new: list[np.ndarray] = [
            np.memmap(folder / "nodes" / f"{SIDE_NAMES[side]}.i64", "<i8", "w+", shape=of_side.shape) for side, of_side in enumerate(parts)
        ]
        for side in SIDES:
            for part, ids in enumerate(own[side]):
                new[side][ids] = np.arange(len(ids)) + starts[2 * part + side]
        return Layout(own, starts, new)

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return len(self.own[0])

    def own_of(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Dataset indices of a part's own users and items, int64, ascending."""
        users, items = (of_side[part] for of_side in self.own)
        return users, items
