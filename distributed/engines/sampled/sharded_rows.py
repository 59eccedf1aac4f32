"""Holds the rows of a spectral start in sharded ID tables: every worker changes its own rows, a chunk at a time."""

import torch
from torch import Tensor

from ....core.graph import degree_power
from ...worker import Worker
from .inference import ShardedInference, chunks


class ShardedRows:
    """Implements `NodeRows` of `core/spectral.py` over the ID tables, in place.

    Args:
        inference: Propagates over the sharded graph.
        worker: This worker.
    """

    def __init__(self, inference: ShardedInference, worker: Worker) -> None:
        self._inference, self._worker = inference, worker

    def propagate(self, target_side: int) -> None:
        """See `NodeRows`."""
        self._inference.propagate(self._inference.ids, self._inference.ids, target_side)

    def scale(self, side: int, exponent: float) -> None:
        """See `NodeRows`."""
        table, factors = self._inference.ids[side], degree_power(self._inference.own_degrees(side), exponent)
        for places in chunks(len(table)):
            table.write(places, (table.read(places).double() * factors[places, None]).float())
        self._inference.barrier()

    def gram(self, side: int) -> Tensor:
        """See `NodeRows`."""
        table = self._inference.ids[side]
        gram = torch.zeros(table.dim, table.dim, dtype=torch.float64)
        for places in chunks(len(table)):
            rows = table.read(places).double()
            gram += rows.T @ rows
        self._worker.sum_([gram])
        return self._worker.share(gram)  # sums over workers may end in other last digits on each of them

    def multiply(self, side: int, matrix: Tensor) -> None:
        """See `NodeRows`."""
        table = self._inference.ids[side]
        for places in chunks(len(table)):
            table.write(places, (table.read(places).double() @ matrix).float())
        self._inference.barrier()
