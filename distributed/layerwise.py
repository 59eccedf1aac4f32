"""Exact propagation over the whole sharded graph, layer by layer: every worker computes its own rows, a chunk at a time.

The memory of a chunk is its edges and the rows it reads; nothing grows with the catalog but the tables themselves.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.blocks import ITEMS, USERS
from ..graph_store.client import GraphClient
from ..graph_store.embeddings import ShardedTable

CHUNK_ROWS = 16_384


def chunks(count: int, rows: int = CHUNK_ROWS) -> Iterator[Tensor]:
    """Places 0..count in runs, int64."""
    for first in range(0, count, rows):
        yield torch.arange(first, min(first + rows, count))


def neighbour_sums(client: GraphClient, ids: Tensor, source: ShardedTable, target_side: int) -> Tensor:
    """Ã x (or Ã^T x) for some rows, float32 [n, dim].

    Args:
        client: Connection to the graph.
        ids: int64 [n], dataset indices of users or items.
        source: The table x of the other side.
        target_side: USERS or ITEMS, what `ids` are.
    """
    none = ids[:0]
    found = client.neighbours.neighbours(*((ids, none) if target_side == USERS else (none, ids)))[target_side]
    unique, at = torch.unique(found.ids, return_inverse=True)
    rows = source.pull(unique)
    return F.embedding_bag(at, rows, found.pointers, mode="sum", include_last_offset=True, per_sample_weights=found.weights)


def propagate(client: GraphClient, own_ids: list[Tensor], source: ShardedTable, target: ShardedTable) -> None:
    """Writes this worker's own rows of Ã x into `target`; a barrier must follow before anyone reads them.

    Args:
        own_ids: Dataset indices of what this worker owns, users and items.
        source: The table x; target: of the other side.
    """
    assert {source.side, target.side} == {USERS, ITEMS}
    for places in chunks(len(target)):
        target.write(places, neighbour_sums(client, own_ids[target.side][places], source, target.side))


def add_to(target: ShardedTable, source: ShardedTable, weight: float = 1.0, normalise: bool = False, scale: float = 1.0) -> None:
    """target <- scale · (target + weight · source) on own rows; `normalise` scales the source's rows to unit length."""
    from ..core.teacher import rownorm

    for places in chunks(len(target)):
        rows = source.read(places)
        target.write(places, scale * (target.read(places) + weight * (rownorm(rows) if normalise else rows)))
