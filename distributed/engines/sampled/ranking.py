"""Ranks the validation users by vectors that are in sharded tables."""

import numpy as np
import torch

from ....core.config import EvaluationConfig
from ....core.graph import Csr
from ....graph_store.backend import RowTable
from ....graph_store.dataset import Dataset
from ....graph_store.external import scratch
from ...worker import Worker
from ..validation import Validation
from .inference import chunks


class ShardedValidation:
    """Computes validation metrics of sharded vectors: a user's row is pulled when it is ranked, and all item rows are in a mapped file.

    The file's pages count as cache, and it goes with this object.

    Args:
        validation: Ranks this worker's share of the users.
        num_items: The number of items.
        dim: Columns of the vectors.
    """

    def __init__(self, validation: Validation, num_items: int, dim: int) -> None:
        self._validation = validation
        self._items = torch.from_numpy(scratch(np.float32, num_items, dim))

    @staticmethod
    def of(dataset: Dataset | None, worker: Worker, train: Csr, config: EvaluationConfig, dim: int) -> "ShardedValidation | None":
        """Builds the validation of vectors with `dim` columns; returns None without a dataset, or where it has no validation split."""
        validation = None if dataset is None else Validation.of(dataset, worker, train, config)
        return None if dataset is None or validation is None else ShardedValidation(validation, dataset.num_items, dim)

    def __call__(self, users: RowTable, items: RowTable) -> dict[str, float]:
        """Computes the metrics; a collective call."""
        for places in chunks(len(self._items)):
            self._items[places] = items.pull(places)
        return self._validation(users.pull, self._items)
