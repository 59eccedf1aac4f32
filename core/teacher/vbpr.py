"""Defines VBPR as a teacher."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..config import TeacherConfig
from ..graph import BipartiteGraph
from ..rows import initial_rows
from ..sides import USERS
from ..vectors import TeacherVectors
from .whole import MappingTeacher


class VbprTeacher(MappingTeacher):
    """Implements VBPR (He and McAuley, AAAI 2016), with a user's taste θ_u^m for each of the M modalities:

    y_ui = <γ_u, γ_i> + Σ_m <θ_u^m, E_m x_i^m> + β_i + Σ_m <β'_m, x_i^m>.

    The user's own bias and the global one are left out, since they change neither a ranking nor BPR. The score is one dot product of the
    user vector [γ_u, θ_u^1, ..., θ_u^M, 1] and the item vector [γ_i, E_1 x_i^1, ..., E_M x_i^M, β_i + Σ_m <β'_m, x_i^m>], both of size
    d (1 + M) + 1. The vectors by modality are θ_u^m and E_m x_i^m, both of size d.
    """

    @classmethod
    def num_layers(cls, config: TeacherConfig) -> int:
        return 0

    @classmethod
    def final_dim(cls, config: TeacherConfig, num_modalities: int) -> int:
        return config.dim * (1 + num_modalities) + 1

    @classmethod
    def further_parameters(cls, config: TeacherConfig, num_users: int, num_items: int, num_modalities: int) -> int:
        """Returns the number of entries of θ, over all users and modalities."""
        return num_users * config.dim * num_modalities

    def __init__(self, num_users: int, num_items: int, dims: Mapping[str, int], config: TeacherConfig, seed: int) -> None:
        super().__init__(num_users, num_items, dims, config, seed)
        width = config.dim * (1 + len(dims))
        start = initial_rows(USERS, torch.arange(num_users), width, config.init_scale, seed)  # the draw's first columns are γ
        self.tastes = nn.Parameter(start[:, config.dim :].clone())  # θ [num_users, M d]
        self.bias = nn.Parameter(torch.zeros(num_items, 1))
        self._add_maps(dims, config.dim, bias=False)
        self.bias_maps = nn.ModuleDict({f"of_{m}": nn.Linear(dim, 1, bias=False) for m, dim in dims.items()})
        for parameter in self.bias_maps.parameters():
            nn.init.zeros_(parameter)

    @classmethod
    def untouched_items(cls, config: TeacherConfig, vectors: TeacherVectors, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor | None:
        """Returns the item vectors with γ_i = 0 and β_i = 0: [0, E_1 x^1, ..., E_M x^M, Σ_m <β'_m, x^m>]."""
        items = vectors.item[rows].clone()
        items[:, : config.dim] = 0
        items[:, -1:] -= weights["model.bias"][rows]
        return items

    def reduce(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns [n, d + 1] by modality: E_m x, and <β'_m, x> in the last column."""
        mapped = super().reduce(features)
        return {m: torch.cat([mapped[m], self.bias_maps[f"of_{m}"](features[m])], 1) for m in self.modalities}

    def vectors(self, graph: BipartiteGraph, reduced: dict[str, Tensor]) -> TeacherVectors:
        dim, (users, items) = self.config.dim, self.collaborative.vectors(graph)
        modal_user = dict(zip(self.modalities, self.tastes.split(dim, 1)))
        modal_item = {m: x[:, :dim] for m, x in reduced.items()}
        bias = torch.stack([self.bias, *(x[:, dim:] for x in reduced.values())]).sum(0)
        users = torch.cat([users, self.tastes, torch.ones_like(users[:, :1])], 1)
        return TeacherVectors(users, torch.cat([items, *modal_item.values(), bias], 1), modal_user, modal_item, None, None, modal_item)

    def rows(self, users: Tensor, items: list[Tensor]) -> list[Tensor]:
        return [*super().rows(users, items), self.tastes[users], *(self.bias[i] for i in items)]

    def feature_parameters(self) -> list[nn.Parameter]:
        return [*super().feature_parameters(), *self.bias_maps.parameters()]
