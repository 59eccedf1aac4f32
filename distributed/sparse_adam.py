"""Sparse Adam over sharded tables: the arithmetic of torch.optim.SparseAdam on summed gradients.

DGL's own sparse Adam averages the gradients of an id that occurs twice, and does not divide by the number of workers. Here a row's
gradients are summed at its owner, who alone updates it.
"""

import math

import torch
from torch import Tensor

from ..graph_store.backend import GraphConnection

BETAS, EPSILON = (0.9, 0.999), 1e-8


def sparse_adam_(weight: Tensor, moment: Tensor, square: Tensor, grad: Tensor, learning_rate: float, step: int) -> None:
    """One step on some rows, in place; rows without a gradient do not move and their moments do not decay.

    Args:
        weight, moment, square, grad: float32 [n, d], the rows, Adam's two moments and the summed gradient.
        step: Steps taken, this one included.
    """
    moment.add_((grad - moment).mul_(1 - BETAS[0]))
    square.add_((grad * grad).sub_(square).mul_(1 - BETAS[1]))
    size = learning_rate * math.sqrt(1 - BETAS[1] ** step) / (1 - BETAS[0] ** step)
    weight.sub_((size * moment).div_(square.sqrt().add_(EPSILON)))


class AdamTable:
    """A sharded table with Adam's state, and a copy of its best rows so far.

    Args:
        client: The worker's connection; creating tables is a collective call.
        side: USERS or ITEMS.
        name: Unique within the session.
        dim: Columns.
    """

    NAMES = ("weight", "exp_avg", "exp_avg_sq", "best")

    def __init__(self, client: GraphConnection, side: int, name: str, dim: int) -> None:
        self.side = side
        self.tables = {key: client.table(side, f"{name}_{key}", dim) for key in self.NAMES}

    def read(self, places: Tensor) -> Tensor:
        """Own rows [n, dim]."""
        return self.tables["weight"].read(places)

    def step(self, places: Tensor, grad: Tensor, learning_rate: float, count: int) -> None:
        """Updates own rows.

        Args:
            places: int64 [n], distinct.
            grad: [n, dim], the gradient of the mean loss.
            count: Steps taken, this one included.
        """
        tables = [self.tables[name] for name in self.NAMES[:3]]
        weight, moment, square = rows = [table.read(places) for table in tables]
        sparse_adam_(weight, moment, square, grad, learning_rate, count)
        for table, changed in zip(tables, rows):
            table.write(places, changed)

    def copy(self, source: str, target: str, chunk_rows: int = 1 << 18) -> None:
        """Copies one table's own rows into another ("weight" to "best" or back)."""
        for first in range(0, len(self.tables[source]), chunk_rows):
            places = torch.arange(first, min(first + chunk_rows, len(self.tables[source])))
            self.tables[target].write(places, self.tables[source].read(places))
