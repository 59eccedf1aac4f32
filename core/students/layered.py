"""Defines students made of layers over the graph, which both engines train and whose vectors both infer exactly."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..config import StudentConfig
from ..graph import Propagation
from .base import Student


class LayeredStudent(Student):
    """Computes a node's layer l + 1 from the node's own layer l and from its neighbours' layer l, summed with the weights of Ã.

    Layer 0 consists of the ID vectors, and the final vectors are the mean of all layers. A subclass implements `layer`, and may replace
    `num_layers`, which is `student.layers` by default.
    """

    engines: ClassVar[tuple[str, ...]] = ("full", "sampled")

    @classmethod
    def num_layers(cls, config: StudentConfig) -> int:
        """Returns the number of layers beside layer 0."""
        return config.layers

    @classmethod
    def num_hops(cls, config: StudentConfig) -> int:
        return cls.num_layers(config)

    def layer(self, number: int, own: Tensor, neighbours: Tensor) -> Tensor:
        """Computes layer `number` + 1 of some nodes, [n, d_S].

        Args:
            number: The layer that is given, from 0.
            own: The nodes' own layer `number`, [n, d_S].
            neighbours: The sum over the nodes' neighbours of their layer `number`, weighted by Ã, [n, d_S].
        """
        raise NotImplementedError

    def vectors(self, graph: Propagation, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the mean of the layers; see the base class."""
        layers = self.num_layers(self.config)
        user_sum, item_sum = graph.users_at(users, 0), graph.items_at(items, 0)
        for number, hop in enumerate(reversed(range(layers))):
            of_users, of_items = graph.to_users(items, hop), graph.to_items(users, hop)
            users = self.layer(number, graph.users_at(users, hop), of_users)
            items = self.layer(number, graph.items_at(items, hop), of_items)
            user_sum, item_sum = user_sum + graph.users_at(users, 0), item_sum + graph.items_at(items, 0)
        return user_sum / (layers + 1), item_sum / (layers + 1)


class LightGcnStudent(LayeredStudent):
    """Implements LightGCN (He et al. 2020, eq. 3 and 4): a layer is the sum over the neighbours."""

    def layer(self, number: int, own: Tensor, neighbours: Tensor) -> Tensor:
        return neighbours


class MfStudent(LightGcnStudent):
    """Implements matrix factorisation: the final vectors are the ID vectors, as in LightGCN without layers."""

    @classmethod
    def num_layers(cls, config: StudentConfig) -> int:
        return 0


class GcnStudent(LayeredStudent):
    """Implements graph convolutions (Kipf and Welling 2017): each layer is tanh(W (own + neighbours) + b), with its own W and b."""

    def __init__(self, config: StudentConfig, user_dim: int, item_dim: int) -> None:
        super().__init__(config, user_dim, item_dim)
        self.maps = nn.ModuleList(nn.Linear(config.dim, config.dim) for _ in range(config.layers))

    def layer(self, number: int, own: Tensor, neighbours: Tensor) -> Tensor:
        return torch.tanh(self.maps[number](neighbours + own))
