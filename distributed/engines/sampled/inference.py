"""Infers vectors exactly over the whole sharded graph, layer by layer: every worker computes its own rows, a chunk at a time.

A chunk has at most `CHUNK_ROWS` rows and `CHUNK_EDGES` edges, which bounds its memory and the time of a server's reply. A row with more
edges is a chunk by itself: its edges (16 bytes each) come in one reply, and its neighbours' rows are read in runs. Nothing but the tables
themselves grows with the catalog.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ....core.sides import ITEMS, SIDE_NAMES, SIDES, USERS, other_side
from ....graph_store.backend import GraphConnection, RowTable
from ...tasks.layers import Layer, Tables
from ...worker import Worker
from ..view import FeatureInputs
from .features import ShardedFeatures
from .sparse_adam import AdamTable

CHUNK_ROWS = 16_384
CHUNK_EDGES = 1 << 20  # with d = 64 at most 256 MiB of rows


def chunks(count: int, rows: int = CHUNK_ROWS) -> Iterator[Tensor]:
    """Yields the places 0 to count - 1 in runs of at most `rows`, int64."""
    for first in range(0, count, rows):
        yield torch.arange(first, min(first + rows, count))


def edge_chunks(connection: GraphConnection, side: int) -> Iterator[Tensor]:
    """Yields the places of this worker's own nodes of one side in runs of at most `CHUNK_ROWS` rows and `CHUNK_EDGES` edges.

    A run has at least one row, also where that row has more edges.
    """
    degrees = connection.own_degrees(side)
    for places in chunks(degrees.numel(), CHUNK_ROWS):
        ends = degrees[places].cumsum(0)
        first = 0
        while first < places.numel():
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(torch.searchsorted(ends, before + CHUNK_EDGES, right=True)))
            yield places[first:last]
            first = last


def neighbour_sums(connection: GraphConnection, ids: Tensor, source: RowTable, target_side: int) -> Tensor:
    """Computes Ã x (or Ã^T x) for some users (or items), float32 [n, dim].

    Args:
        connection: Connection to the graph.
        ids: int64 [n], dataset indices of users or items.
        source: The table x of the other side.
        target_side: The side of `ids`, USERS or ITEMS.
    """
    none = ids[:0]
    users_and_items = (ids, none) if target_side == USERS else (none, ids)
    neighbours = connection.neighbours.neighbours(*users_and_items)[target_side]
    sums = torch.zeros(ids.numel(), source.dim)
    for first in range(0, neighbours.ids.numel(), CHUNK_EDGES):  # one run, unless the chunk is a row with more edges
        run = slice(first, first + CHUNK_EDGES)
        unique, at = torch.unique(neighbours.ids[run], return_inverse=True)
        pointers, rows = (neighbours.pointers - first).clamp(0, at.numel()), source.pull(unique)
        sums += F.embedding_bag(at, rows, pointers, mode="sum", include_last_offset=True, per_sample_weights=neighbours.weights[run])
    return sums


class ShardedInference:
    """Implements `LayerByLayer` of `tasks/layers.py` over sharded tables.

    Args:
        connection: Connection to the graph; creating tables is a collective call.
        worker: This worker.
        ids: The ID tables of users and of items.
        features: The features of this worker's items; None for a task that reads no features.
        stage: Begins the names of the tables.
    """

    def __init__(
        self, connection: GraphConnection, worker: Worker, ids: list[AdamTable], features: ShardedFeatures | None, stage: str
    ) -> None:
        self._connection, self._worker, self._features, self._stage = connection, worker, features, stage
        self._tables: dict[str, Tables] = {}
        self.ids: Tables = ids[USERS].tables["weight"], ids[ITEMS].tables["weight"]

    def tables(self, name: str, dim: int) -> Tables:
        """Returns the pair of tables with this name, and makes it at the first call."""
        if name not in self._tables:
            number = len(self._tables)  # in place of `name`, since a modality's name may hold any character
            users, items = (self._connection.table(side, f"{self._stage}_{number}_{SIDE_NAMES[side]}", dim) for side in SIDES)
            self._tables[name] = users, items
        return self._tables[name]

    def barrier(self) -> None:
        """Waits for all workers."""
        self._worker.barrier()

    def fill(self, target: Tables, rows: Callable[[int, Tensor, Tensor], Tensor]) -> None:
        """Writes this worker's own rows of both sides."""
        for side in SIDES:
            ids = self._connection.own_ids(side)
            for places in chunks(len(target[side])):
                target[side].write(places, rows(side, places, ids[places]))
        self.barrier()

    def own_chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields runs of places among this worker's own users and items; every worker gets as many runs."""
        users, items = self._worker.even_chunks([len(self.ids[side]) for side in SIDES])
        yield from zip(users, items)

    def inputs(self, users: Tensor, items: Tensor) -> FeatureInputs:
        """Returns the inputs of reduction layers and prompt, for own users and items by place, int64 [n] and [m]."""
        assert self._features is not None
        return self._features.inputs(users, items, None)

    def propagate(self, source: Tables, target: Tables, target_side: int) -> None:
        """Writes own rows of Ã x (or Ã^T x) into the target's table of `target_side`."""
        self._sums(source[other_side(target_side)], target[target_side], target_side)
        self.barrier()

    def _sums(self, source: RowTable, target: RowTable, side: int) -> None:
        ids = self._connection.own_ids(side)
        for places in edge_chunks(self._connection, side):
            target.write(places, neighbour_sums(self._connection, ids[places], source, side))

    def mean_of_layers(self, start: Tables, target: Tables, num_layers: int, layer: Layer | None) -> None:
        """Fills the target with the mean of the layers; overwrites `start`."""
        self.fill(target, lambda side, places, ids: start[side].read(places))
        this_layer, next_layer = start, self.tables("further layer", start[USERS].dim) if num_layers else start
        for number in range(num_layers):
            for side in SIDES:
                if layer is None:
                    self._sums(this_layer[other_side(side)], next_layer[side], side)
                else:
                    self._layer(number, layer, this_layer, next_layer, side)
            scale = 1 / (num_layers + 1) if number + 1 == num_layers else 1.0
            for side in SIDES:
                for places in chunks(len(target[side])):
                    target[side].write(places, scale * (target[side].read(places) + next_layer[side].read(places)))
            self.barrier()
            this_layer, next_layer = next_layer, this_layer

    def _layer(self, number: int, layer: Layer, this_layer: Tables, next_layer: Tables, side: int) -> None:
        ids = self._connection.own_ids(side)
        for places in edge_chunks(self._connection, side):
            neighbours = neighbour_sums(self._connection, ids[places], this_layer[other_side(side)], side)
            next_layer[side].write(places, layer(number, this_layer[side].read(places), neighbours))
