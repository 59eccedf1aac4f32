"""Steps sharded tables by sparse Adam: the arithmetic of torch.optim.SparseAdam on summed gradients.

A row's gradients are summed at its owner, who alone updates the row. DGL's own sparse Adam would average the gradients of an id that
occurs twice, and would not divide by the number of workers.
"""

import math

import torch
from torch import Tensor

from ....graph_store.backend import GraphConnection

BETAS, EPSILON = (0.9, 0.999), 1e-8


def sparse_adam_(weight: Tensor, moment: Tensor, square: Tensor, grad: Tensor, learning_rate: float, step: int) -> None:
    """Takes one step on some rows, in place; all other rows keep their values and their moments.

    Args:
        weight, moment, square, grad: float32 [n, d], the rows, Adam's two moments and the summed gradient.
        learning_rate: Adam's step size.
        step: The number of steps taken, this one included.
    """
    moment.add_((grad - moment).mul_(1 - BETAS[0]))
    square.add_((grad * grad).sub_(square).mul_(1 - BETAS[1]))
    size = learning_rate * math.sqrt(1 - BETAS[1] ** step) / (1 - BETAS[0] ** step)
    weight.sub_((size * moment).div_(square.sqrt().add_(EPSILON)))


class AdamTable:
    """Holds a sharded table with Adam's state, and a copy of the rows of the best epoch so far.

    Frozen rows have neither: they are what they are at the best epoch.

    Args:
        connection: Connection to the graph; creating tables is a collective call.
        side: USERS or ITEMS.
        name: Begins the names of the tables; unique within the connection's session.
        dim: The number of columns.
        is_learnt: Whether the rows are learnt; False where they are frozen.
    """

    NAMES = ("weight", "exp_avg", "exp_avg_sq", "best")

    def __init__(self, connection: GraphConnection, side: int, name: str, dim: int, is_learnt: bool = True) -> None:
        self.side, self.is_learnt = side, is_learnt
        names = self.NAMES if is_learnt else self.NAMES[:1]
        self.tables = {key: connection.table(side, f"{name}_{key}", dim) for key in names}

    def read(self, places: Tensor) -> Tensor:
        """Returns this worker's own rows at `places`, int64 [n]: float32 [n, dim]."""
        return self.tables["weight"].read(places)

    def step(self, places: Tensor, grad: Tensor, learning_rate: float, count: int) -> None:
        """Takes one step on some of this worker's own rows.

        Args:
            places: int64 [n], distinct places among the own rows.
            grad: float32 [n, dim], the gradient of the mean loss.
            learning_rate: Adam's step size.
            count: The number of steps taken, this one included.
        """
        tables = [self.tables[name] for name in self.NAMES[:3]]
        weight, moment, square = rows = [table.read(places) for table in tables]
        sparse_adam_(weight, moment, square, grad, learning_rate, count)
        for table, changed in zip(tables, rows):
            table.write(places, changed)

    def copy(self, source: str, target: str, chunk_rows: int = 1 << 18) -> None:
        """Copies this worker's own rows of one table into another, "weight" into "best" or the reverse, `chunk_rows` rows at a time."""
        if not self.is_learnt:
            return
        for first in range(0, len(self.tables[source]), chunk_rows):
            places = torch.arange(first, min(first + chunk_rows, len(self.tables[source])))
            self.tables[target].write(places, self.tables[source].read(places))
