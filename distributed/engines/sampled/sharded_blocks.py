"""Computes on whole tables of rows that are sharded: every worker changes its own rows, a chunk at a time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ....core.graph import degree_power
from ....core.linear.blocks import RowsOf
from ....core.sides import SIDE_NAMES, other_side
from ....graph_store.backend import GraphConnection, RowTable
from ...worker import Worker
from .inference import chunks, edge_chunks, neighbour_sums


class ShardedBlocks:
    """Implements `NodeBlocks` of `core/linear/blocks.py`: a block is a sharded table. No worker holds more than a chunk of it.

    Args:
        connection: Connection to the graph; making blocks is a collective call.
        worker: This worker.
        stage: Begins the names of the tables.
    """

    def __init__(self, connection: GraphConnection, worker: Worker, stage: str) -> None:
        self._connection, self._worker, self._stage, self._made = connection, worker, stage, 0

    @property
    def num_items(self) -> int:
        """See `NodeBlocks`."""
        return self._connection.num_items

    def block(self, side: int, dim: int) -> RowTable:
        """See `NodeBlocks`."""
        self._made += 1
        return self._connection.table(side, f"{self._stage}_block_{self._made}_{SIDE_NAMES[side]}", dim)

    def write(self, target: RowTable, sources: Sequence[RowTable], rows: RowsOf) -> None:
        """See `NodeBlocks`."""
        ids, degrees = self._connection.own_ids(target.side), self._connection.own_degrees(target.side)
        for places in chunks(len(target)):
            read = [source.read(places).double() for source in sources]
            target.write(places, rows(ids[places], degrees[places], *read).float())
        self._worker.barrier()

    def propagate(self, source: RowTable, target: RowTable) -> None:
        """See `NodeBlocks`."""
        assert source.side == other_side(target.side)
        ids = self._connection.own_ids(target.side)
        for places in edge_chunks(self._connection, target.side):
            target.write(places, neighbour_sums(self._connection, ids[places], source, target.side))
        self._worker.barrier()

    def total(self, block: RowTable, of_rows: Callable[[Tensor], Tensor]) -> Tensor:
        """See `NodeBlocks`."""
        total = of_rows(torch.zeros(0, block.dim, dtype=torch.float64))
        for places in chunks(len(block)):
            total += of_rows(block.read(places).double())
        self._worker.sum_([total])
        return self._worker.share(total)  # sums over workers may end in other last digits on each of them


class ShardedRows:
    """Implements `NodeRows` of `core/spectral.py` over the ID tables, in place.

    Args:
        blocks: Computes on sharded tables.
        ids: The ID tables of users and of items.
    """

    def __init__(self, blocks: ShardedBlocks, ids: tuple[RowTable, RowTable]) -> None:
        self._blocks, self._ids = blocks, ids

    def propagate(self, target_side: int) -> None:
        """See `NodeRows`."""
        self._blocks.propagate(self._ids[other_side(target_side)], self._ids[target_side])

    def scale(self, side: int, exponent: float) -> None:
        """See `NodeRows`."""
        self._write(side, lambda ids, degrees, x: x * degree_power(degrees, exponent)[:, None])

    def gram(self, side: int) -> Tensor:
        """See `NodeRows`."""
        return self._blocks.total(self._ids[side], lambda x: x.T @ x)

    def multiply(self, side: int, matrix: Tensor) -> None:
        """See `NodeRows`."""
        self._write(side, lambda ids, degrees, x: x @ matrix)

    def _write(self, side: int, rows: RowsOf) -> None:
        self._blocks.write(self._ids[side], [self._ids[side]], rows)
