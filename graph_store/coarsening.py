"""Parts with few edges between them: the cut of a graph that fits a graph partitioner, or of a coarser graph that does.

A graph with more than `max_edges` edges or nodes is coarsened:
1. Clusters grow from items drawn in proportion to their degrees: in `GROWING_ROUNDS` passes over the rows on disk, every user and then
   every item takes the label that most of its neighbours have, among those with room (label_propagation.py).
2. The partitioner cuts the graph of the clusters, whose edges, at most `max_edges`, stand for the interactions between them.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..core.random import random_uniform
from ..core.sides import ITEMS, SIDES, USERS, other_side
from .adjacency import Rows, runs
from .label_propagation import relabel
from .loads import RUN_EDGES, Loads

MAX_CLUSTERS = 4096
CLUSTER_ROOM = 4.0  # means that a cluster may hold
GROWING_ROUNDS = 4
STREAM_SEEDS, STREAM_CLUSTER_EDGES = len(SIDES), len(SIDES) + 1  # first keys of random draws; the method hash has the side there

# A graph partitioner: (first ends int64 [edges], second ends int64 [edges], shares float64 [n, measures], number of parts) -> the part of
# every vertex, int32 [n]. A pair of ends may occur more than once, and then weighs more; parts are balanced by the shares.
GraphCutter = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]


def cut_graph(rows: Sequence[Rows], loads: Sequence[Loads], count: int, max_edges: int, cutter: GraphCutter) -> list[np.ndarray]:
    """Gives every user and item a part such that few edges lie between parts.

    Args:
        rows, loads: The train graph and what its nodes cost, by side.
        count: Number of parts.
        max_edges: Edges and nodes of the largest graph that the partitioner gets.
        cutter: The partitioner.

    Returns:
        The part of every node by side, int32 [n]; -1 where the coarser graph does not tell.
    """
    num_users, num_items = (len(r) for r in rows)
    if max(int(rows[USERS].pointers[-1]), num_users + num_items) <= max_edges:
        users = np.repeat(np.arange(num_users), np.diff(rows[USERS].pointers))
        shares = np.zeros((num_users + num_items, len(SIDES)))
        shares[:num_users, USERS] = loads[USERS].of(0, num_users).mean(1)
        shares[num_users:, ITEMS] = loads[ITEMS].of(0, num_items).mean(1)
        parts = cutter(users, rows[USERS].columns + np.int64(num_users), shares, count)
        return [parts[:num_users].copy(), parts[num_users:].copy()]
    num_clusters = min(MAX_CLUSTERS, num_items, max(8 * count, num_items // 8))
    labels = grow_clusters(rows, loads, num_clusters)
    shares = np.stack([loads[side].sums(labels[side], num_clusters).mean(1) for side in SIDES], 1)
    parts = np.append(cutter(*_cluster_edges(rows[USERS], labels, num_clusters, max_edges), shares, count), np.int32(-1))
    return [parts[of_side] for of_side in labels]


def grow_clusters(rows: Sequence[Rows], loads: Sequence[Loads], count: int) -> list[np.ndarray]:
    """Grows clusters from items drawn in proportion to their degrees.

    Args:
        rows, loads: The train graph and what its nodes cost, by side.
        count: Number of clusters.

    Returns:
        The cluster of every node by side, int32 [n]; -1 for nodes that no cluster reached or had room for.
    """
    labels = [np.full(len(r), -1, np.int32) for r in rows]
    # Weighted sampling without replacement (Efraimidis and Spirakis 2006).
    keys = np.empty(len(rows[ITEMS]), np.float32)
    for first in range(0, len(keys), RUN_EDGES):
        degrees = np.diff(rows[ITEMS].pointers[first : first + RUN_EDGES + 1])
        uniform = random_uniform(STREAM_SEEDS, torch.arange(first, first + len(degrees))).numpy()
        keys[first : first + len(degrees)] = np.log(np.maximum(uniform, 1e-9)) / np.maximum(degrees, 1e-9)
    seeds = np.argpartition(keys, len(keys) - count)[len(keys) - count :]
    labels[ITEMS][np.sort(seeds)] = np.arange(count)
    for side in GROWING_ROUNDS * SIDES:
        relabel(labels[side], loads[side], count, CLUSTER_ROOM, rows[side], labels[other_side(side)])
    return labels


def _cluster_edges(users: Rows, labels: Sequence[np.ndarray], count: int, max_edges: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges between clusters, int64 [edges] each; a pair's edges stand for its interactions, and are as many up to `max_edges` in all."""
    between = np.zeros(count * count, np.int32)
    for first, last in runs(users.pointers, RUN_EDGES, RUN_EDGES):
        mine = np.repeat(labels[USERS][first:last], np.diff(users.pointers[first : last + 1])).astype(np.int64)
        other = labels[ITEMS][users.columns[users.pointers[first] : users.pointers[last]]]
        cut = (mine >= 0) & (other >= 0) & (mine != other)
        low, high = np.minimum(mine[cut], other[cut]), np.maximum(mine[cut], other[cut])
        np.add.at(between, low * count + high, 1)
    scale, kept = min(1.0, max_edges / max(1, int(between.sum(dtype=np.int64)))), []
    for start in range(0, len(between), RUN_EDGES):
        pairs = np.flatnonzero(between[start : start + RUN_EDGES]) + start
        weights = between[pairs] * scale  # rounded at random, so that many light pairs keep their weight together
        weights += random_uniform(STREAM_CLUSTER_EDGES, torch.from_numpy(pairs)).numpy()
        kept.append(np.repeat(pairs, weights.astype(np.int64)))
    low, high = np.divmod(np.concatenate(kept), count)
    return low, high
