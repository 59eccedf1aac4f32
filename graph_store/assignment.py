"""Which part owns which user and item: `graph.method`.

Every method balances what a part of the graph costs its host, each as a share of the whole catalog: nodes (rows of every table), in-edges,
and for items the bytes of their present feature rows; users and items each for themselves. All are functions of the data and the settings.

hash    at random; then nodes leave parts that hold more than `1 + SLACK` of the mean (a few very popular items can make one).
range   consecutive indices, in the source's order, cut so that the largest share of any part is as small as consecutive runs allow.
metis   few edges between parts: METIS cuts the graph, or where that has more than `graph.metis_edges` edges or nodes a coarser one, of
        clusters (coarsening.py). Then a few passes of label propagation, with the parts as labels, give every user, then every item, to
        the part that holds most of its neighbours, and empty overfull parts.

Memory: a few numbers for every node, `loads.RUN_EDGES` edges at a time, and METIS's graph of bounded size.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ..core.random import random_below
from ..core.sides import ITEMS, SIDES, USERS, other_side
from .adjacency import Rows
from .coarsening import GraphCutter, cut_graph
from .config import GraphConfig
from .label_propagation import relabel
from .loads import RUN_EDGES, Loads

SLACK = 0.05
SETTLING_ROUNDS = 3


def assign(rows: Sequence[Rows], feature_bytes: np.ndarray, config: GraphConfig, cutter: GraphCutter) -> list[np.ndarray]:
    """Gives every user and item to a part.

    Args:
        rows: The train graph by side.
        feature_bytes: int64 [num_items], bytes of an item's present feature rows over all modalities.
        config: Number of parts and method.
        cutter: The graph partitioner of the method metis; others do not call it.

    Returns:
        The part of every node by side, int16 [n]; every part has a node of each side.
    """
    count = config.num_parts
    if count == 1:
        return [np.zeros(len(r), np.int16) for r in rows]
    loads = [Loads(rows[USERS].pointers), Loads(rows[ITEMS].pointers, feature_bytes)]
    if config.method == "range":
        return [_ranges(of_side, count) for of_side in loads]
    if config.method == "metis":
        parts = cut_graph(rows, loads, count, config.metis_edges, cutter)
        for side in SETTLING_ROUNDS * SIDES:
            relabel(parts[side], loads[side], count, 1 + SLACK, rows[side], parts[other_side(side)], spread=True)
    else:
        parts = [_hashed(side, len(rows[side]), count) for side in SIDES]
        for side in SETTLING_ROUNDS * SIDES:
            relabel(parts[side], loads[side], count, 1 + SLACK, spread=True)
    for of_side in parts:
        _fill_empty_parts(of_side, count)
    return [of_side.astype(np.int16) for of_side in parts]


def _fill_empty_parts(parts: np.ndarray, count: int) -> None:
    """Moves the largest part's last node to each part that has none, in place: graph servers need a node of each side."""
    for part in range(count):
        if not (parts == part).any():
            parts[np.flatnonzero(parts == np.bincount(parts).argmax())[-1]] = part


def _hashed(side: int, size: int, count: int) -> np.ndarray:
    parts = np.empty(size, np.int32)
    for first in range(0, size, RUN_EDGES):
        ids = torch.arange(first, min(first + RUN_EDGES, size))
        parts[first : first + len(ids)] = random_below(count, side, ids).numpy()
    return parts


def _ranges(loads: Loads, count: int) -> np.ndarray:
    """Runs of nodes; the largest share of any run, in whatever measure, is the smallest there is (by bisection)."""
    sums = [np.arange(len(loads) + 1), loads.pointers]
    if loads.feature_bytes is not None:
        sums.append(np.concatenate([[0], np.cumsum(loads.feature_bytes)]))
    sums = [entries for entries in sums if entries[-1]]

    def ends_at(share: float) -> list[int]:
        ends, start = [], 0
        for part in range(count):
            fitting = min(int(np.searchsorted(s, s[start] + share * s[-1], side="right")) - 1 for s in sums)
            start = min(max(start + 1, fitting), len(loads) - (count - 1 - part))  # every part has a node
            ends.append(start)
        return ends

    low, high = 1 / count, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if ends_at(middle)[-1] == len(loads) else (middle, high)
    return np.repeat(np.arange(count, dtype=np.int16), np.diff([0, *ends_at(high)]))
