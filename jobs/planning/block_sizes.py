"""How large a worker's neighbour blocks will be: expected, from the train graph itself, and at most, from the fan-outs alone."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...graph_store.dataset import Dataset

TINY = 1e-30
Pair = tuple[np.ndarray, np.ndarray]  # users and items of interactions, int64 [num_pairs] each


@dataclass(frozen=True)
class BlockSizes:
    """One worker's blocks of a step.

    Attributes:
        users, items: Rows at the deepest level.
        asked: Rows whose neighbours are drawn, summed over the hops.
        edges: Neighbours drawn, summed over the hops and both directions.
        further_items: Items beside those of the blocks that uniform draws add (the feature decay's).
        seen: Train items of the users of level 0, from which negatives are drawn.
    """

    users: float
    items: float
    asked: float
    edges: float
    further_items: float
    seen: float

    def times(self, count: int) -> "BlockSizes":
        """Sizes of so many such blocks together."""
        return BlockSizes(*(count * size for size in dataclasses.astuple(self)))


@dataclass(frozen=True)
class Seeds:
    """What one worker's blocks start from.

    Attributes:
        examples: Train interactions, each a user and an item.
        uniform: Further items, drawn uniformly from the catalog.
        further: Uniform draws of items that are not seeds (the feature decay's).
    """

    examples: int
    uniform: int
    further: int = 0


Estimate = Callable[[Seeds, list[int]], BlockSizes]  # sizes of one worker's blocks from their seeds, with these fan-outs by hop


def most(dataset: Dataset, seeds: Seeds, fan_outs: Sequence[int]) -> BlockSizes:
    """Bounds the sizes from above: no neighbour is drawn twice, and no node has fewer neighbours than the fan-out."""
    num_edges, asked, edges = dataset.manifest["num_interactions"]["train"], 0, 0
    users, items = min(dataset.num_users, seeds.examples), min(dataset.num_items, seeds.examples + seeds.uniform)
    for fan_out in fan_outs:
        drawn = [num_edges if fan_out < 0 else min(num_edges, n * fan_out) for n in (users, items)]
        asked, edges = asked + users + items, edges + sum(drawn)
        users, items = min(dataset.num_users, users + drawn[1]), min(dataset.num_items, items + drawn[0])
    return BlockSizes(users, items, asked, edges, min(seeds.further, dataset.num_items - items), num_edges)


def expected(dataset: Dataset, seeds: Seeds, fan_outs: Sequence[int]) -> BlockSizes:
    """Computes the expected sizes, in a pass over the train interactions for every hop, with some arrays of an entry for every node.

    A node is in a level unless each of its edges fails to bring it there. For every edge that failure is computed as if the other end's
    remaining edges were independent of each other and of this one (belief propagation): exact where the sampled neighbourhoods are trees,
    some percent too large where they close circles.
    """
    degrees = _degrees(dataset)
    counts = dataset.num_users, dataset.num_items
    share = min(1.0, seeds.examples / max(1, int(degrees[0].sum())))  # of the interactions that are in the worker's batch
    # Probabilities that a node is not at a level, users' and items'.
    missing = [(1 - share) ** d for d in degrees]
    missing[1] = missing[1] * (1 - 1 / counts[1]) ** seeds.uniform
    levels, asked, edges = [missing], 0.0, 0.0
    for hop, fan_out in enumerate(fan_outs):
        drawn = [d if fan_out < 0 else np.minimum(d, fan_out) for d in degrees]
        asked += sum(float((1 - m).sum()) for m in levels[-1])
        edges += sum(float(((1 - m) * n).sum()) for m, n in zip(levels[-1], drawn))
        failed = [np.zeros(n) for n in counts]  # logarithms
        for pair in dataset.pair_chunks("train"):
            for side, failure in enumerate(_failures(pair, degrees, levels, fan_outs[: hop + 1], share)):
                failed[side] += np.bincount(pair[side], np.log(np.maximum(failure, TINY)), counts[side])
        own = 1.0, (1 - 1 / counts[1]) ** seeds.uniform
        levels.append([np.minimum(last, alone * np.exp(f)) for last, alone, f in zip(levels[-1], own, failed)])
    users, items = (float((1 - m).sum()) for m in levels[-1])
    further = float((levels[-1][1] * (1 - (1 - 1 / counts[1]) ** seeds.further)).sum())
    return BlockSizes(users, items, asked, edges, further, float(((1 - levels[0][0]) * degrees[0]).sum()))


def _failures(
    pair: Pair, degrees: list[np.ndarray], levels: list[list[np.ndarray]], fan_outs: Sequence[int], share: float
) -> list[np.ndarray]:
    """For every edge the probability that it does not bring its user (its item) into the next level.

    `failure[side]` starts as the chance that the edge is not in the batch. An end that is at a level without this edge's help draws it
    with the same chance at that hop and at every later one; `undrawn` is the probability that it is there and has not drawn it yet.
    """
    failure = [np.full(len(pair[0]), 1 - share) for _ in pair]
    present, undrawn = [np.zeros(len(pair[0])) for _ in pair], [np.zeros(len(pair[0])) for _ in pair]
    for fan_out, missing in zip(fan_outs, levels):
        following = []
        for side in (0, 1):
            degree = degrees[side][pair[side]]
            chance = np.ones(len(degree)) if fan_out < 0 else np.minimum(1.0, fan_out / degree)
            now = np.maximum(present[side], 1 - np.minimum(1.0, missing[side][pair[side]] / np.maximum(failure[side], TINY)))
            undrawn[side] = (undrawn[side] + now - present[side]) * (1 - chance)
            present[side] = now
            following.append((1 - share) * (1 - now + undrawn[side]))
        failure = following[::-1]  # what a user draws brings the item
    return failure


def _degrees(dataset: Dataset) -> list[np.ndarray]:
    """Counts the train interactions of every user and of every item, int64 [num_users] and [num_items]."""
    degrees = [np.zeros(n, np.int64) for n in (dataset.num_users, dataset.num_items)]
    for pair in dataset.pair_chunks("train"):
        for side, ids in enumerate(pair):
            degrees[side] += np.bincount(ids, minlength=len(degrees[side]))
    return degrees
