"""Students of layers over the graph: both engines train them, and both infer their vectors exactly, layer by layer."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..config import StudentConfig
from ..graph import Propagation
from .base import Student


class LayeredStudent(Student):
    """A student whose layer l + 1 of a node follows from its own layer l and the sum Ã over its neighbours' layer l.

    Layer 0 are the ID vectors, and the final vectors are the mean of all layers. A subclass says what a layer is; how many there are is
    `student.layers` unless it says otherwise.
    """

    engines: ClassVar[tuple[str, ...]] = ("full", "sampled")

    @classmethod
    def num_layers(cls, config: StudentConfig) -> int:
        """Layers beside layer 0."""
        return config.layers

    @classmethod
    def num_hops(cls, config: StudentConfig) -> int:
        return cls.num_layers(config)

    def layer(self, number: int, own: Tensor, neighbours: Tensor) -> Tensor:
        """Layer `number` + 1 of some nodes, [n, d_S].

        Args:
            number: From 0.
            own: The nodes' own layer `number`, [n, d_S].
            neighbours: The sum over their neighbours' layer `number`, weighted by Ã, [n, d_S].
        """
        raise NotImplementedError

    def vectors(self, graph: Propagation, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the layers; see the base class."""
        layers = self.num_layers(self.config)
        user_sum, item_sum = graph.users_at(users, 0), graph.items_at(items, 0)
        for number, hop in enumerate(reversed(range(layers))):
            of_users, of_items = graph.to_users(items, hop), graph.to_items(users, hop)
            users = self.layer(number, graph.users_at(users, hop), of_users)
            items = self.layer(number, graph.items_at(items, hop), of_items)
            user_sum, item_sum = user_sum + graph.users_at(users, 0), item_sum + graph.items_at(items, 0)
        return user_sum / (layers + 1), item_sum / (layers + 1)


class LightGcnStudent(LayeredStudent):
    """LightGCN (He et al. 2020, eq. 3 and 4): a layer is the sum over the neighbours."""

    def layer(self, number: int, own: Tensor, neighbours: Tensor) -> Tensor:
        return neighbours


class MfStudent(LightGcnStudent):
    """Matrix factorisation: a plain table of vectors, LightGCN without layers."""

    @classmethod
    def num_layers(cls, config: StudentConfig) -> int:
        return 0


class GcnStudent(LayeredStudent):
    """Graph convolutions with a learnt map and a non-linearity a layer: tanh(W (own + neighbours) + b) (Kipf and Welling 2017)."""

    def __init__(self, config: StudentConfig, user_dim: int, item_dim: int) -> None:
        super().__init__(config, user_dim, item_dim)
        self.maps = nn.ModuleList(nn.Linear(config.dim, config.dim) for _ in range(config.layers))

    def layer(self, number: int, own: Tensor, neighbours: Tensor) -> Tensor:
        return torch.tanh(self.maps[number](neighbours + own))
