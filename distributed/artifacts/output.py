"""Defines what an engine gives to a task's artifact: weights, and rows by dataset index wherever they live."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...core.histories import HistoryScores, Similarities
from ..worker import Worker


class Rows(Protocol):
    """Describes rows of all users or of all items."""

    @property
    def dim(self) -> int: ...

    def pull(self, ids: Tensor) -> Tensor:
        """Returns the rows of dataset indices, int64 [n]: float32 [n, dim] on the CPU."""
        ...


@dataclass(frozen=True)
class TensorRows:
    """Holds rows that are in memory as a whole, float [n, dim]."""

    rows: Tensor

    @property
    def dim(self) -> int:
        """Returns the number of columns."""
        return self.rows.shape[1]

    def pull(self, ids: Tensor) -> Tensor:
        """See `Rows`."""
        return self.rows[ids.to(self.rows.device)].float().cpu()


@dataclass(frozen=True)
class HistoryPart:
    """Holds scores from histories for an artifact; the histories themselves are the train interactions.

    Attributes:
        weights: Weights of all users, in one column.
        similarities: The similarities of items.
    """

    weights: Rows
    similarities: Similarities

    @staticmethod
    def of(scores: HistoryScores) -> "HistoryPart":
        """Returns the part of scores of all users from their train interactions."""
        return HistoryPart(TensorRows(scores.weights[:, None]), scores.similarities.to("cpu"))


@dataclass(frozen=True)
class Output:
    """Holds trained rows and weights for an artifact.

    Attributes:
        worker: This worker; each worker writes its share of a sharded artifact.
        num_users, num_items: Numbers of users and items in the catalog.
        weights: The best weights of all learners by prefixed name, on the CPU.
        ids: ID vectors of users and of items; None where the full engine's rows are frozen or the model holds its own.
        vectors: Vectors of users and of items by name: `final`, and a teacher's `modal.<modality>` and `prompt`.
        feature_tensors: Tensors of the features' standardisation by name.
        dims: d_m by modality.
        histories: A teacher's scores from histories, which are added to the dot products of `final`.
    """

    worker: Worker
    num_users: int
    num_items: int
    weights: dict[str, Tensor]
    ids: tuple[Rows, Rows] | None
    vectors: dict[str, tuple[Rows, Rows]]
    feature_tensors: dict[str, Tensor]
    dims: dict[str, int]
    histories: tuple[HistoryPart, ...] = ()

    @property
    def counts(self) -> tuple[int, int]:
        """Returns the numbers of users and of items."""
        return self.num_users, self.num_items

    def whole(self, rows: tuple[Rows, Rows]) -> tuple[Tensor, Tensor]:
        """Returns all rows of users and all rows of items, float32 on the CPU."""
        return rows[0].pull(torch.arange(self.num_users)), rows[1].pull(torch.arange(self.num_items))
