"""Defines the interface between engines and tasks: the view that a task computes on, and the batch."""

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
    """Holds the graph and the rows of users and items that a step, or an inference, reads.

    Attributes:
        graph: The whole train graph, or sampled blocks around the batch.
        users, items: Rows by name, [n, width] each, with their graph of gradients; the rows of all names are those of the same users
            (or items), in the same order.
        item_ids: int64, ascending, dataset indices of the items at the graph's level 0; None where an item's row is its dataset index.
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
        """Returns the items' reduced feature rows by modality, [n, d]."""
        return {name.removeprefix(REDUCED): rows for name, rows in self.items.items() if name.startswith(REDUCED)}


@dataclass(frozen=True)
class FeatureInputs:
    """Holds the inputs of reduction layers and prompt, for some users and items whose features this worker has.

    Attributes:
        constants: The prompt's constants, with the tokens of all users and items or of some.
        rows: int64 [n], the items' rows in `constants.item_tokens`.
        features: Standardised features by modality: float32 [n, d_m], or rows that are read and standardised while they are multiplied.
        dropout_keys: Keys of the dropout masks, (seed, step); None in evaluation.
        ids: int64 [n], the items' dataset indices; None where these are `rows`.
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
    """Describes one worker's share of a step, or of one of the step's micro-batches, as a task makes it.

    Attributes:
        step: The step's number within the epoch.
        size: The number of examples in the step's global batch.
        is_last: Whether this is the step's last micro-batch.
        users, items: int64 of any shape, dataset indices of the users and items that the loss reads; rows of a view once the batch is
            `located`.
        further: int64 [n], further items, of which the loss reads the reduced features alone.
        order_epoch: The epoch in whose order the examples are.
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
        """Returns the batch with rows of a view in place of dataset indices; each argument has the shape of what it replaces."""

    def to(self: Batch, device: torch.device) -> Batch:
        """Returns the batch on a device."""
