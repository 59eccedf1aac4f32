"""The edges of a part: in-edges of its own nodes with local numbers, and the weights of Ã, written a run of rows at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.sides import SIDES, other_side
from .adjacency import Rows, runs
from .external import scratch
from .layout import Layout
from .loads import RUN_EDGES


@dataclass(frozen=True)
class PartEdges:
    """In-edges of a part's own nodes, its users' and then its items', in CSC order.

    Attributes:
        degrees: By side, int64 [own nodes].
        columns: int64 [edges], local numbers: own users, own items, then the other parts' items of own users, the users of own items.
        halo: By side of the own nodes, dataset indices of their neighbours that other parts own, int64, ascending.
        num_cut: Edges from those.
    """

    degrees: list[np.ndarray]
    columns: np.ndarray
    halo: list[np.ndarray]
    num_cut: int

    @property
    def pointers(self) -> np.ndarray:
        """Where the edges of each node begin in `columns`, int64 [nodes + 1]; nodes that other parts own have none."""
        num_own, num_halo = (sum(map(len, of_sides)) for of_sides in (self.degrees, self.halo))
        pointers = np.full(num_own + num_halo + 1, len(self.columns))
        pointers[0] = 0
        np.cumsum(np.concatenate(self.degrees), out=pointers[1 : num_own + 1])
        return pointers


def node_scales(rows: Rows) -> np.ndarray:
    """The factors 1 / sqrt(degree) of the normalised adjacency Ã, float64 [n]; 1 for nodes without edges."""
    scale = np.diff(rows.pointers).astype(np.float64)
    np.maximum(scale, 1, out=scale)
    np.sqrt(scale, out=scale)
    return np.divide(1, scale, out=scale)


def edge_starts(layout: Layout, rows: Sequence[Rows]) -> np.ndarray:
    """The first edge id of part 0's users, its items, part 1's users, ..., int64 [2 · num_parts + 1]."""
    counts = [int(rows[side].degrees(layout.own[side][part]).sum()) for part in range(layout.num_parts) for side in SIDES]
    return np.concatenate([[0], np.cumsum(counts)])


def write_edges(target: Path, part: int, layout: Layout, rows: Sequence[Rows], scales: Sequence[np.ndarray]) -> PartEdges:
    """Gathers a part's edges, and writes their weights to `weights.f32`.

    Args:
        target: The part's folder; the edges lie in a scratch file there.
        part: Which part.
        layout: The nodes of every part.
        rows: The train graph by side.
        scales: By side, what `node_scales` returns.
    """
    own = layout.own_of(part)
    first_numbers = (layout.starts[2 * part : 2 * part + 2] - layout.starts[2 * part]).tolist()
    num_own = num_nodes = sum(map(len, own))
    degrees = [rows[side].degrees(own[side]) for side in SIDES]
    columns = scratch(np.int64, sum(int(of_side.sum()) for of_side in degrees), folder=target)
    halos, num_cut, begin = [], 0, 0
    with open(target / "weights.f32", "wb") as weights:
        for side in SIDES:
            other = other_side(side)
            pointers = np.concatenate([[0], np.cumsum(degrees[side])])
            mine, seen = columns[begin : begin + int(pointers[-1])], np.zeros(len(rows[other]), bool)
            for start, end in runs(pointers, RUN_EDGES, RUN_EDGES):
                here, neighbours = slice(pointers[start], pointers[end]), rows[side].gather(own[side][start:end])
                mine[here], seen[neighbours] = neighbours, True
                values = np.repeat(scales[side][own[side][start:end]], degrees[side][start:end]) * scales[other][neighbours]
                weights.write(values.astype("<f4").data)
            seen[own[other]] = False
            halo = np.flatnonzero(seen)
            local_numbers = np.empty(len(seen), np.int32)
            local_numbers[own[other]] = np.arange(first_numbers[other], first_numbers[other] + len(own[other]))
            local_numbers[halo] = np.arange(num_nodes, num_nodes + len(halo))
            for start in range(0, len(mine), RUN_EDGES):
                numbers = local_numbers[mine[start : start + RUN_EDGES]]
                num_cut += int((numbers >= num_own).sum())
                mine[start : start + RUN_EDGES] = numbers
            halos.append(halo)
            num_nodes += len(halo)
            begin += len(mine)
    return PartEdges(degrees, columns, halos, num_cut)
