"""Defines LATTICE as a teacher."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..config import TeacherConfig
from ..graph import BipartiteGraph
from ..item_graph import ItemGraph
from ..rows import rownorm
from ..vectors import TeacherVectors
from .whole import MappingTeacher


class LatticeTeacher(MappingTeacher):
    """Implements LATTICE (Zhang et al., MM 2021), with LightGCN as its collaborative model (docs/method.md 7).

    z_m = W_m x_m + b_m, the transformed features, 0 where an item lacks the modality;
    A = Σ_m α_m (λ N(S_m) + (1 - λ) N(S'_m)), with α the softmax of one learnt weight for each modality;
    h^0 = the item ID vectors, h^(l+1) = A h^l;
    y_ui = <e_u, e_i + rownorm(h^L')>, with e LightGCN's vectors and L' = `teacher.item_layers`.

    N(S_m) and N(S'_m) are the normalised item graphs of the raw features and of z_m (`core/item_graph.py`). The neighbours of z_m are
    searched once an epoch, as in the published code. Their similarities are computed from the weights in every step and carry gradients;
    in the published code they carry gradients in an epoch's first step alone. The vectors by modality are z_m of an item and the sum Ã z_m
    of a user.
    """

    @classmethod
    def item_graph_edges(cls, config: TeacherConfig, num_items: int, num_modalities: int) -> int:
        """Returns the edges of two graphs for each modality, those of its raw and of its transformed features."""
        return 2 * num_modalities * config.item_neighbours * num_items

    def __init__(self, num_users: int, num_items: int, dims: Mapping[str, int], config: TeacherConfig, seed: int) -> None:
        super().__init__(num_users, num_items, dims, config, seed)
        self._add_maps(dims, config.dim, bias=True)
        self.modality_weights = nn.Parameter(torch.zeros(len(dims)))
        self.initial: dict[str, ItemGraph] = {}
        self.learnt: dict[str, ItemGraph] = {}

    def reduce(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Without the mask all items that lack a modality would have the same row b_m, and be neighbours at a cosine of 1
        return {m: z * features[m].any(1, keepdim=True) for m, z in super().reduce(features).items()}

    def link(self, search: Callable[[Tensor], ItemGraph], reduced: dict[str, Tensor], features: Callable[[], dict[str, Tensor]]) -> None:
        blend = self.config.item_graph_blend
        if blend and not self.initial:
            self.initial = {m: search(x) for m, x in features().items()}
        if blend < 1:
            self.learnt = {m: search(z) for m, z in reduced.items()}

    def vectors(self, graph: BipartiteGraph, reduced: dict[str, Tensor]) -> TeacherVectors:
        """Computes all vectors as the base class describes; `link` has to be called before."""
        users, items = self.collaborative.vectors(graph)
        h = self.convolve(self.collaborative.ids.item, reduced)
        modal_user = {m: graph.to_users(z) for m, z in reduced.items()}
        return TeacherVectors(users, items + rownorm(h), modal_user, reduced, None, None, reduced)

    def convolve(self, h: Tensor, reduced: dict[str, Tensor]) -> Tensor:
        """Computes h^L', [num_items, d], from h^0 [num_items, d] and z_m of all items by modality."""
        blend, shares = self.config.item_graph_blend, torch.softmax(self.modality_weights, 0)
        parts = [(shares[at] * blend, self.initial[m]) for at, m in enumerate(self.modalities) if blend]
        for at, m in enumerate(self.modalities if blend < 1 else []):
            graph = self.learnt[m]
            parts.append((shares[at] * (1 - blend), graph.with_similarities(graph.similarities(rownorm(reduced[m])))))
        for _ in range(self.config.item_layers):
            h = torch.stack([share * graph.propagate(h) for share, graph in parts]).sum(0)
        return h

    def feature_parameters(self) -> list[nn.Parameter]:
        return [*super().feature_parameters(), self.modality_weights]
