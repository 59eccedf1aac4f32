"""Baselines in the same harness, each a possible teacher: final user and item vectors, and vectors by modality where it reads features.

A baseline is a module with `reduce(features)`, what it makes of some items' features (a worker's own); `vectors(graph, reduced)`, its
vectors over the whole graph; and `rows(users, items)`, what L2 acts on. LATTICE has item graphs beside its weights: `link` makes them anew.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .config import StudentConfig, TeacherConfig
from .graph import BipartiteGraph
from .item_graph import ItemGraph
from .losses import bpr_loss, l2_loss
from .random import derive_seed
from .sampling import STREAM_INITIAL
from .scoring import candidate_scores
from .student import Student
from .teacher import TeacherVectors, initial_rows, rownorm


class Baseline(nn.Module):
    """MF-BPR (Rendle et al. 2009), y_ui = <γ_u, γ_i>, and LightGCN (He et al. 2020): the students' models at the teacher's size."""

    def __init__(self, num_users: int, num_items: int, dims: Mapping[str, int], config: TeacherConfig, seed: int) -> None:
        """Builds tables and maps.

        Args:
            dims: d_m by modality, in the order of modalities everywhere; none for models without features.
            config: The teacher's settings.
            seed: Of the tables' start.
        """
        super().__init__()
        self.config, self.modalities = config, list(dims)
        student = StudentConfig(kind="lightgcn", dim=config.dim, layers=config.graph_layers, init_scale=config.init_scale)
        self.collaborative = Student(num_users, num_items, student, seed)

    def reduce(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By modality, from standardised features [n, d_m] of some items: what `vectors` takes of all items."""
        return {}

    def vectors(self, graph: BipartiteGraph, reduced: dict[str, Tensor]) -> TeacherVectors:
        """All vectors over the whole graph, differentiable; without a prompt."""
        users, items = self.collaborative.vectors(graph)
        return TeacherVectors(users, items, {}, {}, None, None, {})

    def rows(self, users: Tensor, items: list[Tensor]) -> list[Tensor]:
        """The batch's rows of the tables."""
        return self.collaborative.rows(users, items)

    def feature_parameters(self) -> list[nn.Parameter]:
        """What is learnt on features, and steps with `teacher.reduction_learning_rate`."""
        return []

    def link(self, search: Callable[[Tensor], ItemGraph], reduced: dict[str, Tensor], features: Callable[[], dict[str, Tensor]]) -> None:
        """Makes the item graphs that go with the weights as they are; only `Lattice` has any.

        Args:
            search: From rows of all items [num_items, n] to their item graph.
            reduced: What `reduce` made of all items.
            features: Reads the features of all items.
        """


class _MapsFeatures(Baseline):
    """A baseline with a linear map of each modality's features."""

    maps: nn.ModuleDict

    def _add_maps(self, dims: Mapping[str, int], width: int, bias: bool) -> None:
        self.maps = nn.ModuleDict({f"of_{m}": nn.Linear(dim, width, bias=bias) for m, dim in dims.items()})
        for name, parameter in self.maps.named_parameters():
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.xavier_uniform_(parameter)

    def reduce(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {m: self.maps[f"of_{m}"](features[m]) for m in self.modalities}

    def feature_parameters(self) -> list[nn.Parameter]:
        return list(self.maps.parameters())


class Vbpr(_MapsFeatures):
    """VBPR (He and McAuley, AAAI 2016), with a taste of the user's for each modality:

    y_ui = <γ_u, γ_i> + Σ_m <θ_u^m, E_m x_i^m> + β_i + Σ_m <β'_m, x_i^m>.

    The user's own bias and the global one are left out: they leave a ranking as it is, and the differences of BPR too. As one dot product:
    user vectors [γ_u, θ_u^1, ..., θ_u^M, 1] and item vectors [γ_i, E_1 x_i^1, ..., E_M x_i^M, β_i + Σ_m <β'_m, x_i^m>], both of size
    d (1 + M) + 1. By modality they are θ_u^m and E_m x_i^m, both of size d.
    """

    def __init__(self, num_users: int, num_items: int, dims: Mapping[str, int], config: TeacherConfig, seed: int) -> None:
        super().__init__(num_users, num_items, dims, config, seed)
        width = config.dim * (1 + len(dims))
        start = initial_rows("user", torch.arange(num_users), width, config.init_scale, seed)  # γ are the first columns of the same draw
        self.tastes = nn.Parameter(start[:, config.dim :].clone())  # θ [num_users, M d]
        self.bias = nn.Parameter(torch.zeros(num_items, 1))
        self._add_maps(dims, config.dim, bias=False)
        self.bias_maps = nn.ModuleDict({f"of_{m}": nn.Linear(dim, 1, bias=False) for m, dim in dims.items()})
        for parameter in self.bias_maps.parameters():
            nn.init.zeros_(parameter)

    def reduce(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """[n, d + 1] by modality: E_m x and in the last column <β'_m, x>."""
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


class Lattice(_MapsFeatures):
    """LATTICE (Zhang et al., MM 2021), with LightGCN as its collaborative model:

    z_m = W_m x^m + b_m, the transformed features, 0 where an item has none;
    A_m = λ S_m + (1 - λ) Ã_m, the normalised item graphs of the raw features and of z_m (`core/item_graph.py`);
    A = Σ_m α_m A_m with α = softmax of a learnt weight a modality;
    h^0 = the item ID vectors, h^(l+1) = A h^l;
    y_ui = <u, i + rownorm(h^L)> with u and i LightGCN's vectors.

    The neighbours of z_m are searched once an epoch, as in the published code; their similarities are computed from the weights in every
    step, and carry gradients (there only in an epoch's first step). By modality the vectors are z_m of an item and Ã z_m, the mean over
    their items, of a user.
    """

    def __init__(self, num_users: int, num_items: int, dims: Mapping[str, int], config: TeacherConfig, seed: int) -> None:
        super().__init__(num_users, num_items, dims, config, seed)
        self._add_maps(dims, config.dim, bias=True)
        self.modality_weights = nn.Parameter(torch.zeros(len(dims)))
        self.initial: dict[str, ItemGraph] = {}
        self.learnt: dict[str, ItemGraph] = {}

    def reduce(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Without the mask all items that lack a modality would be alike: neighbours at a cosine of 1
        return {m: z * features[m].any(1, keepdim=True) for m, z in super().reduce(features).items()}

    def link(self, search: Callable[[Tensor], ItemGraph], reduced: dict[str, Tensor], features: Callable[[], dict[str, Tensor]]) -> None:
        blend = self.config.item_graph_blend
        if blend and not self.initial:
            self.initial = {m: search(x) for m, x in features().items()}
        if blend < 1:
            self.learnt = {m: search(z) for m, z in reduced.items()}

    def vectors(self, graph: BipartiteGraph, reduced: dict[str, Tensor]) -> TeacherVectors:
        """As in the base class; `link` comes first."""
        users, items = self.collaborative.vectors(graph)
        h = self.convolve(self.collaborative.ids.item, reduced)
        modal_user = {m: graph.to_users(z) for m, z in reduced.items()}
        return TeacherVectors(users, items + rownorm(h), modal_user, reduced, None, None, reduced)

    def convolve(self, h: Tensor, reduced: dict[str, Tensor]) -> Tensor:
        """h^L [num_items, d] from h^0 and z_m of all items."""
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


def build_baseline(config: TeacherConfig, num_users: int, num_items: int, dims: Mapping[str, int], seed: int) -> Baseline:
    """The baseline named by `config.kind`, with its seeded start; dims: d_m by modality, empty for a kind that reads no features."""
    kinds = {"mf": Baseline, "lightgcn": Baseline, "vbpr": Vbpr, "lattice": Lattice}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(STREAM_INITIAL, seed, 1))
        return kinds[config.kind](num_users, num_items, dims, config, seed)


def baseline_loss(
    model: Baseline,
    vectors: TeacherVectors,
    users: Tensor,
    positives: Tensor,
    negatives: Tensor,
    num_examples: float,
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """BPR, L2 on the batch's rows, and the feature decay δ Σ_m mean_i |z_m[i]|², each with its weight; their sum is the loss.

    Args:
        vectors: The model's, with their graph of gradients.
        users, positives, negatives: int64 [batch].
        num_examples: Size of the global batch, where `users` is one shard of it: the shards' per-example terms add up to the mean.
        weights: float32 [batch], of the examples in BPR and L2 (`UserWeights`); 1 where not given.
    """
    config = model.config
    scores = candidate_scores(vectors.user, vectors.item, users, torch.stack([positives, negatives], 1))
    terms = {
        "bpr": bpr_loss(scores[:, 0], scores[:, 1], num_examples, weights),
        "l2": config.l2 * l2_loss(model.rows(users, [positives, negatives]), num_examples, weights),
    }
    if config.feature_decay and vectors.reduced:
        terms["feature_decay"] = config.feature_decay * torch.stack([z.square().sum(1).mean() for z in vectors.reduced.values()]).sum()
    return terms
