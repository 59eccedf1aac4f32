"""Exact propagation over the whole sharded graph, layer by layer: every worker computes its own rows, a chunk at a time.

The memory of a chunk, and the time of a server's reply, are those of its edges and the rows it reads: at most `CHUNK_EDGES` edges and
`CHUNK_ROWS` rows. A row with more edges is a chunk of its own, whose edges (16 bytes each) come in one reply and whose neighbours' rows are
read some at a time. Nothing grows with the catalog but the tables themselves.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.sides import ITEMS, USERS
from ..graph_store.backend import GraphConnection, RowTable

CHUNK_ROWS = 16_384
CHUNK_EDGES = 1 << 20  # with d = 64 at most 256 MiB of rows


def chunks(count: int, rows: int | None = None) -> Iterator[Tensor]:
    """Places 0..count in runs of `rows`, or `CHUNK_ROWS`, int64."""
    rows = rows or CHUNK_ROWS
    for first in range(0, count, rows):
        yield torch.arange(first, min(first + rows, count))


def edge_chunks(client: GraphConnection, side: int) -> Iterator[Tensor]:
    """The places of this worker's own nodes of one side in runs of at most `CHUNK_ROWS` rows and `CHUNK_EDGES` edges, one row at least."""
    degrees = client.own_degrees(side)
    for places in chunks(degrees.numel()):
        ends = degrees[places].cumsum(0)
        first = 0
        while first < places.numel():
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(torch.searchsorted(ends, before + CHUNK_EDGES, right=True)))
            yield places[first:last]
            first = last


def neighbour_sums(client: GraphConnection, ids: Tensor, source: RowTable, target_side: int) -> Tensor:
    """Ã x (or Ã^T x) for some rows, float32 [n, dim].

    Args:
        client: Connection to the graph.
        ids: int64 [n], dataset indices of users or items.
        source: The table x of the other side.
        target_side: USERS or ITEMS, what `ids` are.
    """
    none = ids[:0]
    found = client.neighbours.neighbours(*((ids, none) if target_side == USERS else (none, ids)))[target_side]
    sums = torch.zeros(ids.numel(), source.dim)
    for first in range(0, found.ids.numel(), CHUNK_EDGES):  # one run, but for a row with more edges
        run = slice(first, first + CHUNK_EDGES)
        unique, at = torch.unique(found.ids[run], return_inverse=True)
        pointers, rows = (found.pointers - first).clamp(0, at.numel()), source.pull(unique)
        sums += F.embedding_bag(at, rows, pointers, mode="sum", include_last_offset=True, per_sample_weights=found.weights[run])
    return sums


def propagate(client: GraphConnection, own_ids: list[Tensor], source: RowTable, target: RowTable) -> None:
    """Writes this worker's own rows of Ã x into `target`; a barrier must follow before anyone reads them.

    Args:
        own_ids: Dataset indices of what this worker owns, users and items.
        source: The table x; target: of the other side.
    """
    assert {source.side, target.side} == {USERS, ITEMS}
    for places in edge_chunks(client, target.side):
        target.write(places, neighbour_sums(client, own_ids[target.side][places], source, target.side))


def add_to(target: RowTable, source: RowTable, scale: float = 1.0) -> None:
    """target <- scale · (target + source) on own rows."""
    for places in chunks(len(target)):
        target.write(places, scale * (target.read(places) + source.read(places)))
