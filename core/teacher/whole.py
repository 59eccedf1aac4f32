"""Defines teachers that every worker holds whole and the full engine trains: the interface of baselines and of a teacher of your own."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..config import TeacherConfig
from ..graph import BipartiteGraph, light_propagation
from ..item_graph import ItemGraph
from ..losses import bpr_loss, l2_loss
from ..rows import IdTables
from ..scoring import candidate_scores
from ..vectors import TeacherVectors
from .base import Teacher
from .softmax import softmax_term
from .triples import Triples


class Collaborative(nn.Module):
    """Holds ID tables and propagates them by `num_layers` layers of LightGCN (He et al. 2020); 0 layers is matrix factorisation."""

    def __init__(self, num_users: int, num_items: int, config: TeacherConfig, num_layers: int, seed: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.ids = IdTables.seeded(num_users, num_items, config.dim, config.init_scale, seed)

    def vectors(self, graph: BipartiteGraph) -> tuple[Tensor, Tensor]:
        """Computes the mean of the layers, [num_users, d] and [num_items, d]."""
        return light_propagation(graph, self.ids.user, self.ids.item, self.num_layers)

    def rows(self, users: Tensor, items: list[Tensor]) -> list[Tensor]:
        """Returns the tables' rows of users, int64 [batch], and of each of the lists of items, int64 [batch]; [batch, d] each."""
        return [self.ids.user[users], *(self.ids.item[i] for i in items)]


class WholeTeacher(Teacher, nn.Module):
    """Defines a teacher as one module with all its tables; `teacher.kind=module:Class` names a subclass of your own.

    A subclass implements `vectors`. If it learns on features, it sets `reads_features` to True and implements `reduce` and
    `feature_parameters` too. `rows` returns the rows that L2 acts on, and `link` updates what depends on the weights but is no weight, such
    as item graphs. Without any of these the class is LightGCN.
    """

    engines: ClassVar[tuple[str, ...]] = ("full",)

    def __init__(self, num_users: int, num_items: int, dims: Mapping[str, int], config: TeacherConfig, seed: int) -> None:
        """Builds tables and maps; the caller seeds torch's generator, which draws the maps.

        Args:
            num_users, num_items: Numbers of users and items in the catalog.
            dims: d_m by modality, in the order that modalities have everywhere; empty for a teacher that reads no features.
            config: The teacher's settings.
            seed: Seed of the tables.
        """
        nn.Module.__init__(self)
        self.config, self.modalities = config, list(dims)
        self.collaborative = Collaborative(num_users, num_items, config, self.num_layers(config), seed)

    def reduce(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Maps standardised features [n, d_m] of some items to rows [n, width] by modality; `vectors` takes these rows of all items."""
        return {}

    def vectors(self, graph: BipartiteGraph, reduced: dict[str, Tensor]) -> TeacherVectors:
        """Computes all vectors over the whole graph; differentiable with respect to the weights.

        Args:
            graph: The train graph.
            reduced: The result of `reduce` for all items, by modality.
        """
        users, items = self.collaborative.vectors(graph)
        return TeacherVectors(users, items, {}, {}, None, None, {})

    def rows(self, users: Tensor, items: list[Tensor]) -> list[Tensor]:
        """Returns the rows that L2 acts on.

        Args:
            users: int64 [batch], the batch's users.
            items: The batch's positives and its negatives, int64 [batch] each.
        """
        return self.collaborative.rows(users, items)

    def feature_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that act on features, which step with `teacher.reduction_learning_rate`."""
        return []

    def link(self, search: Callable[[Tensor], ItemGraph], reduced: dict[str, Tensor], features: Callable[[], dict[str, Tensor]]) -> None:
        """Updates what follows from the weights but is no weight; called at the start, after every epoch and when weights are restored.

        The default does nothing.

        Args:
            search: Builds an item graph from rows of all items [num_items, n].
            reduced: The result of `reduce` for all items, by modality.
            features: Returns the standardised features of all items, [num_items, d_m] by modality.
        """

    def loss(self, vectors: TeacherVectors, batch: Triples) -> dict[str, Tensor]:
        """Computes BPR or the softmax loss, L2 on the batch's rows and the feature decay δ Σ_m mean_i |z_m[i]|², each times its weight.

        Args:
            vectors: The teacher's vectors, with their graph of gradients.
            batch: The examples.
        """
        config = self.config
        if config.loss == "softmax":
            terms = {"softmax": softmax_term(vectors.user, vectors.item, batch, config)}
        else:
            pairs = torch.stack([batch.positives, batch.negatives], 1)
            scores = candidate_scores(vectors.user, vectors.item, batch.users, pairs)
            terms = {"bpr": bpr_loss(scores[:, 0], scores[:, 1], batch.num_examples, batch.weights)}
        if config.l2:
            rows = self.rows(batch.users, [batch.positives, batch.negatives])
            terms["l2"] = config.l2 * l2_loss(rows, batch.num_examples, batch.weights)
        if config.feature_decay and vectors.reduced:
            decay = torch.stack([z.square().sum(1).mean() for z in vectors.reduced.values()]).sum()
            terms["feature_decay"] = config.feature_decay * decay
        return terms


class MappingTeacher(WholeTeacher):
    """Defines a teacher with a linear map of each modality's features; a subclass calls `_add_maps` to build the maps."""

    reads_features: ClassVar[bool] = True
    maps: nn.ModuleDict

    def _add_maps(self, dims: Mapping[str, int], width: int, bias: bool) -> None:
        self.maps = nn.ModuleDict({f"of_{m}": nn.Linear(dim, width, bias=bias) for m, dim in dims.items()})
        for name, parameter in self.maps.named_parameters():
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.xavier_uniform_(parameter)

    def reduce(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: self.maps[f"of_{m}"](features[m]) for m in self.modalities}

    def feature_parameters(self) -> list[nn.Parameter]:
        return list(self.maps.parameters())
