"""Teachers that every worker holds whole, trained by the full engine: the interface of baselines and of a teacher of your own."""

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
from .triples import Triples


class Collaborative(nn.Module):
    """ID tables with `num_layers` rounds of LightGCN propagation (He et al. 2020); no layers is matrix factorisation."""

    def __init__(self, num_users: int, num_items: int, config: TeacherConfig, num_layers: int, seed: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.ids = IdTables.seeded(num_users, num_items, config.dim, config.init_scale, seed)

    def vectors(self, graph: BipartiteGraph) -> tuple[Tensor, Tensor]:
        """The mean of the layers, [num_users, d] and [num_items, d]."""
        return light_propagation(graph, self.ids.user, self.ids.item, self.num_layers)

    def rows(self, users: Tensor, items: list[Tensor]) -> list[Tensor]:
        """Rows of the tables."""
        return [self.ids.user[users], *(self.ids.item[i] for i in items)]


class WholeTeacher(Teacher, nn.Module):
    """A teacher as one module with all its tables; `teacher.kind=module:Class` names a subclass of your own.

    A subclass has `vectors`; where it learns on features also `reduce` and `feature_parameters`, and `reads_features` is True. `rows` says
    what L2 acts on, and `link` makes anew what depends on the weights but is no weight, such as item graphs. LightGCN is the start.
    """

    engines: ClassVar[tuple[str, ...]] = ("full",)

    def __init__(self, num_users: int, num_items: int, dims: Mapping[str, int], config: TeacherConfig, seed: int) -> None:
        """Builds tables and maps; the caller seeds torch's generator.

        Args:
            num_users, num_items: Of the catalog.
            dims: d_m by modality, in the order of modalities everywhere; none for a teacher that reads no features.
            config: The teacher's settings.
            seed: Seed of the tables' start.
        """
        nn.Module.__init__(self)
        self.config, self.modalities = config, list(dims)
        self.collaborative = Collaborative(num_users, num_items, config, self.num_layers(config), seed)

    def reduce(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By modality, from standardised features [n, d_m] of some items: what `vectors` takes of all items."""
        return {}

    def vectors(self, graph: BipartiteGraph, reduced: dict[str, Tensor]) -> TeacherVectors:
        """All vectors over the whole graph, differentiable.

        Args:
            graph: The train graph.
            reduced: What `reduce` made of all items.
        """
        users, items = self.collaborative.vectors(graph)
        return TeacherVectors(users, items, {}, {}, None, None, {})

    def rows(self, users: Tensor, items: list[Tensor]) -> list[Tensor]:
        """The batch's rows that L2 acts on."""
        return self.collaborative.rows(users, items)

    def feature_parameters(self) -> list[nn.Parameter]:
        """What is learnt on features, and steps with `teacher.reduction_learning_rate`."""
        return []

    def link(self, search: Callable[[Tensor], ItemGraph], reduced: dict[str, Tensor], features: Callable[[], dict[str, Tensor]]) -> None:
        """Makes what goes with the weights as they are, after every epoch and when weights are restored; nothing by default.

        Args:
            search: From rows of all items [num_items, n] to their item graph.
            reduced: What `reduce` made of all items.
            features: Reads the features of all items.
        """

    def loss(self, vectors: TeacherVectors, batch: Triples) -> dict[str, Tensor]:
        """BPR, L2 on the batch's rows, and the feature decay δ Σ_m mean_i |z_m[i]|², each with its weight; their sum is the loss.

        Args:
            vectors: Its vectors, with their graph of gradients.
            batch: The examples.
        """
        config = self.config
        pairs = torch.stack([batch.positives, batch.negatives], 1)
        scores = candidate_scores(vectors.user, vectors.item, batch.users, pairs)
        rows = self.rows(batch.users, [batch.positives, batch.negatives])
        terms = {
            "bpr": bpr_loss(scores[:, 0], scores[:, 1], batch.num_examples, batch.weights),
            "l2": config.l2 * l2_loss(rows, batch.num_examples, batch.weights),
        }
        if config.feature_decay and vectors.reduced:
            decay = torch.stack([z.square().sum(1).mean() for z in vectors.reduced.values()]).sum()
            terms["feature_decay"] = config.feature_decay * decay
        return terms


class MappingTeacher(WholeTeacher):
    """A teacher with a linear map of each modality's features."""

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
