"""Size-constrained label propagation (Meyerhenke, Sanders, Schulz 2014): nodes join their neighbours' labels while there is room."""

import numpy as np

from .adjacency import Rows
from .loads import Loads, sum_by

RUNS_A_PART = 64  # nodes that move at a time are at most this share of a part


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
        loads: What these nodes cost.
        count: Number of labels.
        room: Means that a label may hold, in every measure; it may be exceeded by one node.
        rows: Neighbours of the nodes; None: nodes only leave overfull labels.
        theirs: int32, labels of the other side's nodes, which `rows` has the neighbours in.
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
