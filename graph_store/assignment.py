"""Which part owns which user and item: `graph.method`.

Every method balances what a part of the graph costs its host, each as a share of the whole catalog: nodes (rows of every table), in-edges,
and for items the bytes of their present feature rows; users and items each for themselves. All are functions of the data and the settings.

hash    at random; then nodes leave parts that hold more than `1 + SLACK` of the mean (a few very popular items can make one).
range   consecutive indices, in the source's order, cut so that the largest share of any part is as small as consecutive runs allow.
metis   few edges between parts. A graph of at most `graph.metis_edges` edges and nodes goes to METIS as it is. A larger one is coarsened:
        1. Clusters grow from items drawn in proportion to their degrees, by size-constrained label propagation (Meyerhenke, Sanders,
           Schulz 2014): in `GROWING_ROUNDS` passes over the rows on disk, every user and then every item takes the label that most of its
           neighbours have, among those with room.
        2. METIS cuts the graph of the clusters, whose edges, at most `graph.metis_edges`, stand for the interactions between them.
        In both cases a few passes of the same label propagation, now with the parts as labels, give every user, then every item, to the
        part that holds most of its neighbours, and empty overfull parts.

Memory: a few numbers for every node, `RUN_EDGES` edges at a time, and METIS's graph of bounded size.
"""

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..core.random import random_below, random_uniform
from .adjacency import ITEM, KINDS, OTHER, USER, Rows, runs
from .config import GraphConfig

SLACK = 0.05
RUN_EDGES = 1 << 20
RUNS_A_PART = 64  # nodes that move at a time are at most this share of a part
MAX_CLUSTERS = 4096
CLUSTER_ROOM = 4.0  # means that a cluster may hold
GROWING_ROUNDS, SETTLING_ROUNDS = 4, 3
STREAM_SEEDS, STREAM_CLUSTER_EDGES = len(KINDS), len(KINDS) + 1  # the first keys of random draws; hash has a kind's number there


@dataclass(frozen=True)
class Loads:
    """What each node of one kind adds to its owner, as shares of the kind's total.

    Attributes:
        pointers: int64 [n + 1], of its in-edges.
        feature_bytes: int64 [n] bytes of its present feature rows; None for users.
    """

    pointers: np.ndarray
    feature_bytes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.pointers) - 1

    def of(self, first: int, last: int) -> np.ndarray:
        """Shares of nodes [first, last): float64 [last - first, 2 or 3], in the order nodes, edges, feature bytes."""
        parts = [np.full(last - first, 1 / len(self)), np.diff(self.pointers[first : last + 1]) / max(1, int(self.pointers[-1]))]
        if self.feature_bytes is not None:
            parts.append(self.feature_bytes[first:last] / self._total_bytes)
        return np.stack(parts, 1)

    @functools.cached_property
    def _total_bytes(self) -> int:
        return 1 if self.feature_bytes is None else max(1, int(self.feature_bytes.sum()))

    def sums(self, labels: np.ndarray, count: int) -> np.ndarray:
        """Shares by label, float64 [count, 2 or 3]; a label below 0 counts for nothing."""
        total = np.zeros((count, self.of(0, 0).shape[1]))
        for first, last in self.runs(1):
            total += sum_by(labels[first:last], self.of(first, last), count)
        return total

    def runs(self, num_runs: int) -> Iterator[tuple[int, int]]:
        """At least about `num_runs` runs of nodes, [first, last), each with at most its share of nodes and edges."""
        limits = (max(1, min(RUN_EDGES, total // num_runs)) for total in (int(self.pointers[-1]), len(self)))
        return runs(self.pointers, *limits)


def sum_by(labels: np.ndarray, shares: np.ndarray, count: int) -> np.ndarray:
    """Column sums of `shares` by label, [count, columns]; rows with a label below 0 are left out."""
    kept = labels >= 0
    return np.stack([np.bincount(labels[kept], column[kept], count) for column in shares.T], 1)


def assign(rows: dict[str, Rows], feature_bytes: np.ndarray, config: GraphConfig) -> dict[str, np.ndarray]:
    """The part of every user and item, int16.

    Args:
        rows: The train graph.
        feature_bytes: int64 [num_items], bytes of an item's present feature rows over all modalities.
        config: Number of parts and method.
    """
    count = config.num_parts
    if count == 1:
        return {kind: np.zeros(len(rows[kind]), np.int16) for kind in KINDS}
    loads = {USER: Loads(rows[USER].pointers), ITEM: Loads(rows[ITEM].pointers, feature_bytes)}
    if config.method == "range":
        return {kind: _ranges(loads[kind], count) for kind in KINDS}
    if config.method == "metis":
        parts = _metis(rows, loads, count, config.metis_edges)
        for kind in SETTLING_ROUNDS * KINDS:
            relabel(parts[kind], loads[kind], count, 1 + SLACK, rows[kind], parts[OTHER[kind]], spread=True)
    else:
        parts = {kind: _hashed(number, len(rows[kind]), count) for number, kind in enumerate(KINDS)}
        for kind in SETTLING_ROUNDS * KINDS:
            relabel(parts[kind], loads[kind], count, 1 + SLACK, spread=True)
    for kind in KINDS:  # DGL needs a node of every kind in every part
        for part in range(count):
            if not (parts[kind] == part).any():
                parts[kind][np.flatnonzero(parts[kind] == np.bincount(parts[kind]).argmax())[-1]] = part
    return {kind: p.astype(np.int16) for kind, p in parts.items()}


def _hashed(number: int, size: int, count: int) -> np.ndarray:
    parts = np.empty(size, np.int32)
    for first in range(0, size, RUN_EDGES):
        ids = torch.arange(first, min(first + RUN_EDGES, size))
        parts[first : first + len(ids)] = random_below(count, number, ids).numpy()
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


def relabel(
    labels: np.ndarray,
    loads: Loads,
    count: int,
    room: float,
    rows: Rows | None = None,
    theirs: np.ndarray | None = None,
    spread: bool = False,
) -> None:
    """One pass of size-constrained label propagation: each node takes the label that most of its neighbours have, if that has room.

    Args:
        labels: int32 [n], changed in place; -1: none yet.
        loads: Of these nodes.
        count: Number of labels.
        room: Means that a label may hold, in every measure; it may be exceeded by one node.
        rows: Neighbours of the nodes; None: nodes only leave overfull labels.
        theirs: int32, the neighbours' labels.
        spread: Nodes without a label, and those of overfull ones, that find none among their neighbours' go to the emptiest.
    """
    held, limit = loads.sums(labels, count), room / count
    for first, last in loads.runs(RUNS_A_PART * count if spread else 1):
        own, now = loads.of(first, last), labels[first:last].copy()
        is_open, over = np.all(held < limit, axis=1), held > limit
        forced = (now >= 0) & (over[now] & (own > 0)).any(1) if spread else np.zeros(len(now), bool)
        target = now.copy()
        if rows is not None and theirs is not None:
            best, votes, kept = _votes(rows, theirs, now, first, last, is_open, np.argsort(-held.max(1), kind="stable"))
            target = np.where((best >= 0) & (forced | (votes > kept)), best, now)
        if spread and is_open.any():
            lost = (target == now) & (forced | (now < 0))
            target[lost] = np.flatnonzero(is_open)[held[is_open].max(1).argmin()]
        moving = np.flatnonzero(target != now)
        moving = moving[_fitting(target[moving], own[moving], held, limit)]
        held += sum_by(target[moving], own[moving], count) - sum_by(now[moving], own[moving], count)
        labels[first:last][moving] = target[moving]
    if spread:
        lost = np.flatnonzero(labels < 0)
        labels[lost] = np.arange(len(lost)) % count


def _fitting(target: np.ndarray, own: np.ndarray, held: np.ndarray, limit: float) -> np.ndarray:
    """Which nodes still find room in their target, the earlier ones first: bool [n]."""
    order = np.argsort(target, kind="stable")
    before = np.cumsum(own[order], 0) - own[order]
    starts = np.searchsorted(target[order], target[order])  # where the target's nodes begin
    fits = np.empty(len(target), bool)
    fits[order] = (held[target[order]] + before - before[starts] < limit).all(1)
    return fits


def _votes(
    rows: Rows, theirs: np.ndarray, now: np.ndarray, first: int, last: int, is_open: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For nodes [first, last): the open label that most neighbours have (-1: none), its votes, and the votes of the node's own label.

    Args:
        is_open: bool [count], labels that may be taken.
        order: Labels, those that win a tie last.
    """
    bits, rank = len(order).bit_length(), np.empty(len(order) + 1, np.int64)
    rank[order], rank[-1] = np.arange(len(order)), -1
    voted = rank[theirs[rows.columns[rows.pointers[first] : rows.pointers[last]]]]
    keys = (np.repeat(np.arange(last - first), np.diff(rows.pointers[first : last + 1])) << bits) | voted
    keys = keys[voted >= 0]
    keys.sort()
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    counts = np.diff(np.append(starts, len(keys)))
    nodes, ranks = keys[starts] >> bits, keys[starts] & ((1 << bits) - 1)
    kept = np.zeros(last - first, np.int64)
    mine = ranks == rank[now[nodes]]
    kept[nodes[mine]] = counts[mine]
    allowed = is_open[order[ranks]] & ~mine
    nodes, found = nodes[allowed], (counts[allowed] << bits) | ranks[allowed]
    best, votes = np.full(last - first, -1, np.int32), np.zeros(last - first, np.int64)
    if len(nodes):
        starts = np.flatnonzero(np.concatenate([[True], nodes[1:] != nodes[:-1]]))
        top = np.maximum.reduceat(found, starts)
        best[nodes[starts]], votes[nodes[starts]] = order[top & ((1 << bits) - 1)], top >> bits
    return best, votes, kept


def _metis(rows: dict[str, Rows], loads: dict[str, Loads], count: int, max_edges: int) -> dict[str, np.ndarray]:
    """The part of every user and item, int32, -1 where METIS does not say."""
    sizes, num_edges = {kind: len(rows[kind]) for kind in KINDS}, int(rows[USER].pointers[-1])
    if max(num_edges, sum(sizes.values())) <= max_edges:
        users = np.repeat(np.arange(sizes[USER]), np.diff(rows[USER].pointers))
        ends = users, rows[USER].columns + np.int64(sizes[USER])
        shares = np.zeros((sum(sizes.values()), 2))
        shares[: sizes[USER], 0] = loads[USER].of(0, sizes[USER]).mean(1)
        shares[sizes[USER] :, 1] = loads[ITEM].of(0, sizes[ITEM]).mean(1)
        parts = run_metis(*ends, shares, count)
        return {USER: parts[: sizes[USER]].copy(), ITEM: parts[sizes[USER] :].copy()}
    num_clusters = min(MAX_CLUSTERS, sizes[ITEM], max(8 * count, sizes[ITEM] // 8))
    labels = grow_clusters(rows, loads, num_clusters)
    shares = np.stack([loads[kind].sums(labels[kind], num_clusters).mean(1) for kind in KINDS], 1)
    parts = np.append(run_metis(*_cluster_edges(rows[USER], labels, num_clusters, max_edges), shares, count), np.int32(-1))
    return {kind: parts[labels[kind]] for kind in KINDS}


def grow_clusters(rows: dict[str, Rows], loads: dict[str, Loads], count: int) -> dict[str, np.ndarray]:
    """The cluster of every user and item, int32; -1 for those that none reached or had room for."""
    labels = {kind: np.full(len(rows[kind]), -1, np.int32) for kind in KINDS}
    # Weighted sampling without replacement (Efraimidis and Spirakis 2006).
    keys = np.empty(len(rows[ITEM]), np.float32)
    for first in range(0, len(keys), RUN_EDGES):
        degrees = np.diff(rows[ITEM].pointers[first : first + RUN_EDGES + 1])
        uniform = random_uniform(STREAM_SEEDS, torch.arange(first, first + len(degrees))).numpy()
        keys[first : first + len(degrees)] = np.log(np.maximum(uniform, 1e-9)) / np.maximum(degrees, 1e-9)
    seeds = np.argpartition(keys, len(keys) - count)[len(keys) - count :]
    labels[ITEM][np.sort(seeds)] = np.arange(count)
    for kind in GROWING_ROUNDS * KINDS:
        relabel(labels[kind], loads[kind], count, CLUSTER_ROOM, rows[kind], labels[OTHER[kind]])
    return labels


def _cluster_edges(users: Rows, labels: dict[str, np.ndarray], count: int, max_edges: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges between clusters, int64 [edges] each; a pair's edges stand for its interactions, and are as many up to `max_edges` in all."""
    between = np.zeros(count * count, np.int32)
    for first, last in runs(users.pointers, RUN_EDGES, RUN_EDGES):
        mine = np.repeat(labels[USER][first:last], np.diff(users.pointers[first : last + 1])).astype(np.int64)
        other = labels[ITEM][users.columns[users.pointers[first] : users.pointers[last]]]
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


def run_metis(first: np.ndarray, second: np.ndarray, shares: np.ndarray, count: int) -> np.ndarray:
    """METIS's part of every vertex, int32 [n].

    The order of the rows that DGL makes from pairs differs from call to call, and METIS reads memory that it did not write: so it gets
    sorted rows, and `cleared_memory`, without which the same graph had a dozen different cuts in 25 calls.

    Args:
        first, second: int64 [edges], the ends of every edge; a pair may occur more than once, and then weighs more.
        shares: float64 [n, measures], what the parts are balanced by.
        count: Number of parts.
    """
    os.environ.setdefault("DGLBACKEND", "pytorch")
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
    """What malloc hands out is zero meanwhile (glibc)."""
    libc, perturb = ctypes.CDLL("libc.so.6"), -6  # M_PERTURB: new memory is filled with the complement of the value
    libc.mallopt(perturb, 255)
    try:
        yield
    finally:
        libc.mallopt(perturb, 0)
