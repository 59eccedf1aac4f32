"""Exact full ranking of the validation users: each worker ranks its share of them against all items."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.config import EvaluationConfig
from ...core.graph import Csr
from ...core.ranking import rank_rows
from ...graph_store.dataset import Dataset
from ..worker import Worker

USER_ROWS = 1 << 16


@dataclass(frozen=True)
class Validation:
    """Validation on one worker.

    Attributes:
        worker: This worker.
        users: int64 [n], this worker's share of the users with a validation item.
        held_out: Their validation items.
        train: Train items of all users, which are masked.
        config: Metrics.
    """

    worker: Worker
    users: Tensor
    held_out: Csr
    train: Csr
    config: EvaluationConfig

    @staticmethod
    def of(dataset: Dataset, worker: Worker, train: Csr, config: EvaluationConfig) -> "Validation | None":
        """For this worker's share of the users; None where the dataset has no validation split."""
        if not dataset.has_split("validation"):
            return None
        csr = dataset.csr("validation").to(train.pointers.device)
        mine = csr.degrees.nonzero().squeeze(1)[worker.rank :: worker.world_size]
        return Validation(worker, mine, csr.select(mine), train, config)

    def __call__(self, user_rows: Callable[[Tensor], Tensor], items: Tensor) -> dict[str, float]:
        """Returns the metrics of some vectors; a collective call.

        Args:
            user_rows: From dataset indices int64 [n] to the users' final vectors [n, d].
            items: Final vectors of all items [num_items, d]; may be memory-mapped.
        """
        users = torch.cat([user_rows(ids) for ids in self.users.split(USER_ROWS)])
        exclude, config = self.train.select(self.users), self.config
        metrics = rank_rows(users, items, self.held_out, exclude, config.cutoffs, config.memory_mib, config.metrics)
        self.worker.sum_(metrics.states())
        self.worker.barrier()  # vectors may change only when all have read them
        return metrics.compute()
