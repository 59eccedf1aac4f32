"""Holds the catalog in a worker of the full engine: the train graph, and the features of the worker's own items.

Features are reduced where they are held: each worker reduces the rows of its share of the items, and d-sized vectors travel in an
all-gather that passes gradients back.
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
    """Holds the train graph, the prompt's constants, and the features of this worker's items.

    Attributes:
        worker: This worker.
        graph: The train graph, on the worker's device.
        rows: Dataset indices of this worker's items, int64 [n].
        features: Standardised features of these items by modality, float32 [n, d_m].
        constants: The prompt's constants, for all users and items.
        feature_constants: Standardisation, G_m and s_m by modality.
        sizes: The number of items of every rank.
        position: The place of each item among all ranks' rows in rank order, int64 [num_items].
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
        """Returns d_m by modality."""
        return {m: x.shape[1] for m, x in self.features.items()}

    def gather(self, rows: Tensor) -> Tensor:
        """Returns the rows of all items, [num_items, n], in the dataset's order; collective and differentiable.

        Args:
            rows: [len(self.rows), n], this worker's rows of its own items.
        """
        return self.worker.gather_rows(rows, self.sizes)[self.position]

    def inputs(self, dropout_keys: tuple[int, ...] | None) -> FeatureInputs:
        """Returns the inputs of reduction layers and prompt, for this worker's items and all users.

        Args:
            dropout_keys: (seed, step) in training, None in evaluation.
        """
        return FeatureInputs(self.constants, self.rows, self.features, dropout_keys)

    def view(self, users: Tensor | None, items: Tensor | None, own: dict[str, Tensor]) -> View:
        """Returns a view of all users and items; collective.

        Args:
            users, items: ID vectors of all users and items; None where the task's model holds its own rows.
            own: The task's result for `inputs`: the prompts `user` and `item` of all users and items, and `reduced.<modality>` of this
                worker's items.
        """
        rows: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        for side, ids, prompt in ((0, users, own.get("user")), (1, items, own.get("item"))):
            rows[side].update({} if ids is None else {ID: ids}, **({} if prompt is None else {PROMPT: prompt}))
        rows[1].update({name: self.gather(x) for name, x in own.items() if name.startswith(REDUCED)})
        return View(self.graph, *rows)


class InMemory:
    """Holds the raw rows of one modality, in memory or memory-mapped as a whole."""

    def __init__(self, rows: np.ndarray, present: Tensor) -> None:
        self._rows, self._present = torch.from_numpy(rows), present

    @property
    def dim(self) -> int:
        """Returns the number of columns."""
        return self._rows.shape[1]

    def __len__(self) -> int:
        return self._rows.shape[0]

    def read(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Returns rows and presence at `places`, int64 [n], which have to ascend without gaps; nothing is copied."""
        run = slice(int(places[0]), int(places[-1]) + 1) if places.numel() else slice(0, 0)
        return self._rows[run], self._present[run]


def build_catalog(worker: Worker, config: TeacherConfig | None, graph: BipartiteGraph, load_shard: Callable[[], ItemShard]) -> WholeCatalog:
    """Builds the catalog from the train graph and this worker's items; a collective call.

    Args:
        worker: This worker.
        config: Settings of the teacher that the catalog is for; None where no teacher is computed from it.
        graph: The train graph.
        load_shard: Reads the raw features of this worker's items.
    """
    graph, none = graph.to(worker.device), torch.zeros(0, 0, device=worker.device)
    shard = load_shard() if config is not None and config.reads_features else None
    raw_rows = {m: InMemory(x, shard.present[m]) for m, x in shard.features.items()} if shard is not None else {}
    rows = shard.rows if shard is not None else torch.zeros(0, dtype=torch.int64)
    sizes, position = _gathered_order(worker, rows, graph.num_items) if shard is not None else ([], rows)
    # A baseline has no prompt, and so needs neither tokens nor their PCA.
    dim, whiten = (config.dim, config.whiten) if config is not None and not config.is_baseline else (0, False)
    tokens = torch.zeros(rows.numel(), dim)

    def write_tokens(places: Tensor, rows_of_tokens: Tensor) -> None:
        tokens[places] = rows_of_tokens

    fixed = prepare_features(worker, raw_rows, dim, whiten, rows.numel(), write_tokens)
    everything = torch.arange(rows.numel())
    features = {m: fixed.standardisation[m].apply(*raw.read(everything)).to(worker.device) for m, raw in raw_rows.items()}
    constants = PromptConstants(none, none, {}, {})
    if dim:
        item_tokens = worker.gather_rows(tokens.to(worker.device), sizes)[position]
        constants = PromptConstants(item_tokens, graph.to_users(item_tokens), fixed.gram, fixed.column_sums).to(worker.device)
    return WholeCatalog(worker, graph, rows.to(worker.device), features, constants, fixed, sizes, position)


def _gathered_order(worker: Worker, rows: Tensor, num_items: int) -> tuple[list[int], Tensor]:
    """Returns the number of items of every rank, and the place of each item among all ranks' rows in rank order; collective."""
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
