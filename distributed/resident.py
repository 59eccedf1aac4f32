"""The teacher inside a worker: its graph, its prompt constants and the features of the worker's own items.

Reduce where the features live: each worker reduces the rows of its shard, and d-sized vectors travel (all-gather, with gradients).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor

from ..core.config import TeacherConfig
from ..core.errors import InputError
from ..core.features import FeatureMoments, Standardisation, principal_axes
from ..core.graph import BipartiteGraph
from ..core.sampling import UserWeights
from ..core.teacher import PromptConstants, TeacherVectors, teacher_vectors
from ..graph_store.backend import Session
from ..graph_store.dataset import Dataset
from ..graph_store.dgl.connection import connect
from ..graph_store.dgl.item_shard import read_item_shard
from ..graph_store.own_features import ItemShard
from .worker import Worker

SERVICE_SECONDS = 180.0


@dataclass(frozen=True)
class ResidentTeacher:
    """Everything of the teacher but its weights.

    Attributes:
        worker: This worker.
        config: The teacher's settings.
        graph: The train graph, on the worker's device.
        constants: What the prompt is computed from.
        rows: Dataset indices of this worker's items, int64 [n].
        features: Standardised features of those items by modality, float32 [n, d_m].
        standardisation: By modality.
        sizes: Number of items of every rank.
        position: Where each item stands in the gathered order, int64 [num_items].
    """

    worker: Worker
    config: TeacherConfig
    graph: BipartiteGraph
    constants: PromptConstants
    rows: Tensor
    features: dict[str, Tensor]
    standardisation: dict[str, Standardisation]
    sizes: list[int]
    position: Tensor

    @functools.cached_property
    def user_weights(self) -> UserWeights | None:
        """Weights of train interactions in the teacher's loss."""
        return UserWeights.of(self.graph.users.pointers, self.config.user_balance)

    def standardisation_tensors(self) -> dict[str, Tensor]:
        """Mean, scale and whitening of every modality by name, for the artifact."""
        return {f"standardisation.{m}.{part}": tensor for m, s in self.standardisation.items() for part, tensor in s.tensors().items()}

    def gather(self, rows: Tensor) -> Tensor:
        """All items' rows [num_items, n], in the dataset's order, from each worker's for its own items; differentiable."""
        return self.worker.gather_rows(rows, self.sizes)[self.position]

    def reduction_inputs(self, dropout_keys: tuple[int, ...] | None) -> tuple:
        """Arguments of `FeatureReduction.forward` for this worker's shard."""
        return self.constants, self.rows, self.features, dropout_keys

    def vectors(
        self,
        reduction: Callable[..., dict[str, Tensor]],
        user_ids: Tensor,
        item_ids: Tensor,
        dropout_keys: tuple[int, ...] | None = None,
        final: bool = True,
    ) -> TeacherVectors:
        """All vectors, exact over the whole graph; differentiable.

        Args:
            reduction: The reduction layers and prompt, as an engine or as a module.
            user_ids, item_ids: The ID tables.
            dropout_keys: (seed, step) in training, None in evaluation.
            final: As in `teacher_vectors`.
        """
        out = reduction(*self.reduction_inputs(dropout_keys))
        reduced = {m: self.gather(out[f"reduced.{m}"]) for m in self.features}
        return teacher_vectors(self.graph, user_ids, item_ids, out, reduced, self.config, final)


def load_resident(worker: Worker, service: Any, config: TeacherConfig) -> ResidentTeacher:
    """Reads structure and this worker's features through the graph store, and computes the prompt's constants over all shards.

    Args:
        service: The `GraphService` actor, of which rank 0 starts a fresh set of servers; or, for one worker, the dataset itself.
    """
    if isinstance(service, Dataset):
        return _resident_of_dataset(worker, service, config)
    session = worker.share(ray.get(service.restart.remote(list(worker.nodes)), timeout=SERVICE_SECONDS) if worker.is_first else None)
    structure = worker.share(_read_structure(service, session, worker) if worker.is_first else None)
    users, items, num_users, num_items, original_items = structure
    shard = read_item_shard(session, original_items, worker.rank, list(worker.nodes))
    return build_resident(worker, config, BipartiteGraph.from_pairs(users, items, num_users, num_items), shard)


def _resident_of_dataset(worker: Worker, dataset: Dataset, config: TeacherConfig) -> ResidentTeacher:
    assert worker.world_size == 1, "workers share a catalog through the graph store"
    train, loaded = dataset.csr("train"), {m: dataset.features(m) for m in dataset.modalities}
    graph = BipartiteGraph.from_pairs(train.rows, train.columns, dataset.num_users, dataset.num_items)
    rows, present = {m: x for m, (x, _) in loaded.items()}, {m: torch.from_numpy(p) for m, (_, p) in loaded.items()}
    return build_resident(worker, config, graph, ItemShard(torch.arange(dataset.num_items), rows, present))


def _read_structure(service: Any, session: Session, worker: Worker) -> tuple[Tensor, Tensor, int, int, Tensor]:
    """Rank 0 alone is a DGL client, since hosts without a part of the graph cannot be; it checks what it read against the degrees."""
    with connect(service, session, worker.rank, list(worker.nodes)) as client:
        users, items = client.train_pairs()
        degrees, found = (
            client.degrees(),
            (torch.bincount(users, minlength=client.num_users), torch.bincount(items, minlength=client.num_items)),
        )
        if not all(torch.equal(d, f) for d, f in zip(degrees, found)):
            raise InputError(f"{session.graph_url}: degrees and edges do not agree; add run.redo=partition")
        return users, items, client.num_users, client.num_items, client.original_items()


def build_resident(worker: Worker, config: TeacherConfig, graph: BipartiteGraph, shard: ItemShard) -> ResidentTeacher:
    """The resident teacher from the train graph and this worker's shard of the items; a collective call."""
    graph = graph.to(worker.device)
    sizes, position = _gathered_order(worker, shard.rows, graph.num_items)
    if not config.reads_features:
        shard = ItemShard(shard.rows, {}, {})
    num_tokens = 0 if config.is_baseline else config.dim  # a baseline has no prompt, and its PCA would be for nothing
    whiten = config.whiten and not config.is_baseline
    features, standardisation, constants = _prepare_features(worker, shard, graph, sizes, position, num_tokens, whiten)
    return ResidentTeacher(worker, config, graph, constants, shard.rows.to(worker.device), features, standardisation, sizes, position)


def _gathered_order(worker: Worker, rows: Tensor, num_items: int) -> tuple[list[int], Tensor]:
    counts = torch.zeros(worker.world_size, dtype=torch.int64)
    counts[worker.rank] = rows.numel()
    worker.sum_([counts])
    sizes = counts.tolist()
    assert sum(sizes) == num_items, "every item has one owner"
    first = sum(sizes[: worker.rank])
    position = torch.zeros(num_items, dtype=torch.int64)
    position[rows] = torch.arange(first, first + rows.numel())
    worker.sum_([position])
    return sizes, position.to(worker.device)


def _prepare_features(
    worker: Worker, shard: ItemShard, graph: BipartiteGraph, sizes: list[int], position: Tensor, dim: int, whiten: bool
) -> tuple[dict[str, Tensor], dict[str, Standardisation], PromptConstants]:
    """Standardised features, and h_I, h_U, G_m and s_m summed over the shards in float64; dim: of the tokens, 0 for none."""
    features, standardisation = {}, {}
    tokens = torch.zeros(shard.rows.numel(), dim, dtype=torch.float64)
    num_present = torch.zeros(shard.rows.numel(), 1, dtype=torch.float64)
    for modality, raw in shard.features.items():
        rows, present = torch.from_numpy(raw), shard.present[modality]
        moments = FeatureMoments.of(rows, present)
        worker.sum_(moments.tensors())

        def with_unit_rows(standard: Standardisation) -> Standardisation:
            norms = standard.sum_of_row_norms(rows, present)  # noqa: B023
            worker.sum_([norms])
            return standard.with_mean_row_norm(norms / moments.count.clamp(min=1))  # noqa: B023

        standard = with_unit_rows(Standardisation.from_moments(moments))
        x = standard.apply(rows, present)
        if dim:
            tokens += x.double() @ principal_axes(moments, standard, dim)
        if whiten:  # after the tokens: the axes of whitened rows have no order
            standard = with_unit_rows(standard.whitened(moments))
            x = standard.apply(rows, present)
        num_present += present[:, None]
        features[modality], standardisation[modality] = x, standard
    on_device = {m: x.to(worker.device) for m, x in features.items()}
    if not dim:
        none = torch.zeros(0, 0, device=worker.device)
        return on_device, standardisation, PromptConstants(none, none, {}, {})
    tokens = tokens / num_present.clamp(min=1)
    gram = {m: tokens.T @ x.double() for m, x in features.items()}
    sums = {m: x.double().sum(0) for m, x in features.items()}
    worker.sum_([*gram.values(), *sums.values()])
    item_tokens = worker.gather_rows(tokens.float().to(worker.device), sizes)[position]
    constants = PromptConstants(
        item_tokens,
        graph.to_users(item_tokens),
        {m: g.float() for m, g in gram.items()},
        {m: s.float() for m, s in sums.items()},
    ).to(worker.device)
    return on_device, standardisation, constants
