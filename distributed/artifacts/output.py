"""What a task's artifact asks of an engine: rows by dataset index, wherever they live."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..worker import Worker


class Rows(Protocol):
    """Rows of all users or of all items."""

    @property
    def dim(self) -> int: ...

    def pull(self, ids: Tensor) -> Tensor:
        """Rows by dataset index, int64 [n]: float32 [n, dim]."""
        ...


@dataclass(frozen=True)
class TensorRows:
    """Rows that are in memory as a whole, [n, dim]."""

    rows: Tensor

    @property
    def dim(self) -> int:
        """Columns."""
        return self.rows.shape[1]

    def pull(self, ids: Tensor) -> Tensor:
        """See `Rows`."""
        return self.rows[ids.to(self.rows.device)].float().cpu()


@dataclass(frozen=True)
class Output:
    """Trained rows and weights, for an artifact.

    Attributes:
        worker: This worker; each writes its share of a sharded artifact.
        num_users, num_items: Of the catalog.
        weights: The best weights of all learners by prefixed name, on the CPU.
        ids: The rows that were trained, or that the model was given, of users and items; None where the model keeps its own.
        vectors: Vectors of users and items by name: `final`, and a teacher's `modal.<modality>` and `prompt`.
        feature_tensors: Standardisation of the features by name.
        dims: d_m by modality.
    """

    worker: Worker
    num_users: int
    num_items: int
    weights: dict[str, Tensor]
    ids: tuple[Rows, Rows] | None
    vectors: dict[str, tuple[Rows, Rows]]
    feature_tensors: dict[str, Tensor]
    dims: dict[str, int]

    @property
    def counts(self) -> tuple[int, int]:
        """Users and items."""
        return self.num_users, self.num_items

    def whole(self, rows: tuple[Rows, Rows]) -> tuple[Tensor, Tensor]:
        """Returns all rows of users and of items."""
        return rows[0].pull(torch.arange(self.num_users)), rows[1].pull(torch.arange(self.num_items))
