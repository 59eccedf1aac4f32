"""What a task computes a step on, and what both sides call a batch: the seam between engines and tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ...core.features import LazyRows
from ...core.graph import BipartiteGraph, Propagation
from ...core.teacher.reduction import PromptConstants

ID, PROMPT, REDUCED = "id", "prompt", "reduced."  # names of rows: ID vectors, prompts, and reduced.<modality>
Batch = TypeVar("Batch", bound="TaskBatch")


@dataclass(frozen=True)
class View:
    """The graph and the rows of users and items that a step, or an inference, reads.

    Attributes:
        graph: The whole train graph, or sampled blocks around the batch.
        users, items: Rows by name, [n, width] each, with their graph of gradients; every name has the same users or items.
        item_ids: int64, ascending, dataset indices of the items of the graph's level 0; None where an item's row is its index.
    """

    graph: Propagation
    users: dict[str, Tensor]
    items: dict[str, Tensor]
    item_ids: Tensor | None = None

    def whole_graph(self) -> BipartiteGraph:
        """Returns the train graph itself, for a model that the full engine alone trains."""
        assert isinstance(self.graph, BipartiteGraph)
        return self.graph

    def reduced(self) -> dict[str, Tensor]:
        """Reduced feature rows of the items by modality."""
        return {name.removeprefix(REDUCED): rows for name, rows in self.items.items() if name.startswith(REDUCED)}


@dataclass(frozen=True)
class FeatureInputs:
    """What reduction layers and prompt are computed from, for some users and items whose features this worker has.

    Attributes:
        constants: The prompt's constants; its tokens may be those of some users and items only.
        rows: int64 [n], the items' rows in `constants.item_tokens`.
        features: By modality [n, d_m], standardised: float32, or read and standardised as they are multiplied.
        dropout_keys: Keys of the dropout masks, (seed, step); None in evaluation.
        ids: int64 [n], the items' dataset indices, where `rows` are not.
    """

    constants: PromptConstants
    rows: Tensor
    features: Mapping[str, Tensor | LazyRows]
    dropout_keys: tuple[int, ...] | None = None
    ids: Tensor | None = None

    def as_arguments(self) -> tuple:
        """Returns the arguments of `FeatureReduction.forward`."""
        return self.constants, self.rows, self.features, self.dropout_keys, self.ids


class TaskBatch(Protocol):
    """One worker's share of a step, or of one of its micro-batches, as a task makes it.

    Attributes:
        step: Number within the epoch.
        size: Examples of the step's global batch.
        is_last: Whether no further micro-batch of the step follows.
        users, items: int64 of any shape, dataset indices of what its loss reads; rows, once it is `located`.
        further: int64 [n], items whose reduced features alone it reads beside these.
        order_epoch: The epoch in whose order its examples stand.
    """

    @property
    def step(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def is_last(self) -> bool: ...

    @property
    def users(self) -> Tensor: ...

    @property
    def items(self) -> Tensor: ...

    @property
    def further(self) -> Tensor: ...

    @property
    def order_epoch(self) -> int: ...

    def located(self: Batch, users: Tensor, items: Tensor, further: Tensor) -> Batch:
        """Returns the same with rows in place of dataset indices; each argument has the shape of what it replaces."""

    def to(self: Batch, device: torch.device) -> Batch:
        """Returns the same on a device."""
