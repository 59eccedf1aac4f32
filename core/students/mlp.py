"""Defines a student on the teacher's frozen vectors."""

import itertools
from typing import ClassVar

from torch import Tensor, nn

from ..config import StudentConfig
from ..graph import Propagation
from .base import Student


class MlpStudent(Student):
    """Implements two multilayer perceptrons, one for users and one for items, on the teacher's final vectors.

    Each has `student.layers` linear layers, with LeakyReLU (slope 0.2) between them.
    """

    least_layers: ClassVar[int] = 1
    learns_rows: ClassVar[bool] = False

    def __init__(self, config: StudentConfig, user_dim: int, item_dim: int) -> None:
        super().__init__(config, user_dim, item_dim)

        def head(width: int) -> nn.Sequential:
            sizes = [width] + [config.dim] * config.layers
            layers: list[nn.Module] = []
            for inner, outer in itertools.pairwise(sizes):
                layers += [nn.Linear(inner, outer), nn.LeakyReLU(0.2)]
            return nn.Sequential(*layers[:-1])

        self.user_head, self.item_head = head(user_dim), head(item_dim)

    def vectors(self, graph: Propagation, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the perceptrons' outputs; the graph is not used."""
        return self.user_head(users), self.item_head(items)

    def regularised(self, users: Tensor, items: list[Tensor]) -> list[Tensor]:
        """Returns the perceptrons' outputs for the batch, since the rows themselves are frozen."""
        return [self.user_head(users), *(self.item_head(rows) for rows in items)]
