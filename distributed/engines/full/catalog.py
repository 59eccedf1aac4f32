"""The catalog in a worker of the full engine: the train graph, and the features of the worker's own items.

Reduce where the features live: each worker reduces the rows of its share of the items, and d-sized vectors travel (all-gather, with
gradients).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ....core.config import TeacherConfig
from ....core.graph import BipartiteGraph
from ....core.teacher.reduction import PromptConstants
from ....graph_store.own_features import ItemShard
from ...features import FeatureConstants, prepare_features
from ...worker import Worker
from ..view import ID, PROMPT, REDUCED, FeatureInputs, View


@dataclass(frozen=True)
class WholeCatalog:
    """The train graph, the prompt's constants, and the features of this worker's items.

    Attributes:
        worker: This worker.
        graph: The train graph, on the worker's device.
        rows: Dataset indices of this worker's items, int64 [n].
        features: Standardised features of those items by modality, float32 [n, d_m].
        constants: What the prompt is computed from, over all users and items.
        feature_constants: Standardisation by modality, G_m and s_m.
        sizes: Number of items of every rank.
        position: Where each item stands in the gathered order, int64 [num_items].
    """

    worker: Worker
    graph: BipartiteGraph
    rows: Tensor
    features: dict[str, Tensor]
    constants: PromptConstants
    feature_constants: FeatureConstants
    sizes: list[int]
    position: Tensor

    @property
    def dims(self) -> dict[str, int]:
        """d_m by modality."""
        return {m: x.shape[1] for m, x in self.features.items()}

    def gather(self, rows: Tensor) -> Tensor:
        """Returns all items' rows [num_items, n], in the dataset's order, from each worker's for its own items; differentiable."""
        return self.worker.gather_rows(rows, self.sizes)[self.position]

    def inputs(self, dropout_keys: tuple[int, ...] | None) -> FeatureInputs:
        """Returns what reduction layers and prompt are computed from, for this worker's items and all users."""
        return FeatureInputs(self.constants, self.rows, self.features, dropout_keys)

    def view(self, users: Tensor | None, items: Tensor | None, own: dict[str, Tensor]) -> View:
        """Returns all rows of users and items.

        Args:
            users, items: ID vectors, where the task keeps them apart from its model.
            own: What the task made of `inputs`: `user` and `item`, the prompts of all, and `reduced.<modality>` of this worker's items.
        """
        rows: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        for side, ids, prompt in ((0, users, own.get("user")), (1, items, own.get("item"))):
            rows[side].update({} if ids is None else {ID: ids}, **({} if prompt is None else {PROMPT: prompt}))
        rows[1].update({name: self.gather(x) for name, x in own.items() if name.startswith(REDUCED)})
        return View(self.graph, *rows)


class InMemory:
    """Raw rows of one modality, in memory or memory-mapped as a whole."""

    def __init__(self, rows: np.ndarray, present: Tensor) -> None:
        self._rows, self._present = torch.from_numpy(rows), present

    @property
    def dim(self) -> int:
        """Columns."""
        return self._rows.shape[1]

    def __len__(self) -> int:
        return self._rows.shape[0]

    def read(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and presence of a run of items, int64 [n], ascending without gaps; nothing is copied."""
        run = slice(int(places[0]), int(places[-1]) + 1) if places.numel() else slice(0, 0)
        return self._rows[run], self._present[run]


def build_catalog(worker: Worker, config: TeacherConfig | None, graph: BipartiteGraph, load_shard: Callable[[], ItemShard]) -> WholeCatalog:
    """Returns the catalog from the train graph and this worker's items; a collective call.

    Args:
        worker: This worker.
        config: Of the teacher that it is for; None where no teacher reads features or prompts.
        graph: The train graph.
        load_shard: Reads the raw features of this worker's items.
    """
    graph, none = graph.to(worker.device), torch.zeros(0, 0, device=worker.device)
    shard = load_shard() if config is not None and config.reads_features else None
    own = {m: InMemory(x, shard.present[m]) for m, x in shard.features.items()} if shard is not None else {}
    rows = shard.rows if shard is not None else torch.zeros(0, dtype=torch.int64)
    sizes, position = _gathered_order(worker, rows, graph.num_items) if shard is not None else ([], rows)
    # A teacher without a prompt has no tokens: their PCA would be for nothing.
    dim, whiten = (config.dim, config.whiten) if config is not None and not config.is_baseline else (0, False)
    tokens = torch.zeros(rows.numel(), dim)

    def write_tokens(places: Tensor, made: Tensor) -> None:
        tokens[places] = made

    fixed = prepare_features(worker, own, dim, whiten, rows.numel(), write_tokens)
    everything = torch.arange(rows.numel())
    features = {m: fixed.standardisation[m].apply(*raw.read(everything)).to(worker.device) for m, raw in own.items()}
    constants = PromptConstants(none, none, {}, {})
    if dim:
        item_tokens = worker.gather_rows(tokens.to(worker.device), sizes)[position]
        constants = PromptConstants(item_tokens, graph.to_users(item_tokens), fixed.gram, fixed.column_sums).to(worker.device)
    return WholeCatalog(worker, graph, rows.to(worker.device), features, constants, fixed, sizes, position)


def _gathered_order(worker: Worker, rows: Tensor, num_items: int) -> tuple[list[int], Tensor]:
    """Number of items of every rank, and where each item stands when all ranks' rows are put one after the other."""
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
