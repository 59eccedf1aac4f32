"""Ranks the validation users exactly: each worker ranks all items for its share of the users."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...core.config import EvaluationConfig
from ...core.graph import Csr
from ...core.histories import HistoryScores
from ...core.ranking import rank_rows
from ...graph_store.dataset import Dataset
from ..worker import Worker

USER_ROWS = 1 << 16


@dataclass(frozen=True)
class Validation:
    """Computes validation metrics; each worker ranks its share of the users.

    Attributes:
        worker: This worker.
        users: int64 [n], this worker's share of the users with a validation item.
        held_out: The validation items of these users, n rows.
        train: Returns the train items of some users, int64 [n] ascending, which are masked.
        config: Settings of evaluation.
    """

    worker: Worker
    users: Tensor
    held_out: Csr
    train: Callable[[Tensor], Csr]
    config: EvaluationConfig

    @staticmethod
    def of(dataset: Dataset, worker: Worker, train: Csr | None, config: EvaluationConfig) -> "Validation | None":
        """Builds the validation of this worker's share of the users; returns None where the dataset has no validation split.

        Args:
            dataset: The run's dataset.
            worker: This worker.
            train: Train items of all users; None: those of the share alone are read from the dataset.
            config: Settings of evaluation.
        """
        if not dataset.has_split("validation"):
            return None
        csr = dataset.csr("validation").to(worker.device if train is None else train.pointers.device)
        share = csr.degrees.nonzero().squeeze(1)[worker.rank :: worker.world_size]

        def read(users: Tensor) -> Csr:
            return dataset.csr_of("train", users.cpu()).to(users.device)

        return Validation(worker, share, csr.select(share), read if train is None else train.select, config)

    def sampled(self, most: int) -> "Validation":
        """Returns the validation of evenly spaced users, at most about so many over all workers: enough to compare many settings."""
        step = -(-self.users.numel() * self.worker.world_size // most)
        if step <= 1:
            return self
        rows = torch.arange(0, self.users.numel(), step, device=self.users.device)
        return replace(self, users=self.users[rows], held_out=self.held_out.select(rows))

    def __call__(self, user_rows: Callable[[Tensor], Tensor], items: Tensor, histories: Sequence[HistoryScores] = ()) -> dict[str, float]:
        """Computes the metrics of final scores; a collective call.

        Args:
            user_rows: Returns users' final vectors [n, d] from their dataset indices, int64 [n].
            items: Final vectors of all items [num_items, d]; may be memory-mapped.
            histories: Scores from all users' histories, which are added to the vectors' dot products.
        """
        users = torch.cat([user_rows(ids) for ids in self.users.split(USER_ROWS)])
        exclude, config = self.train(self.users), self.config
        own = [part.select(self.users) for part in histories]
        metrics = rank_rows(users, items, self.held_out, exclude, config.cutoffs, config.memory_mib, config.metrics, own)
        self.worker.sum_(metrics.states())
        self.worker.barrier()  # the vectors may change only when all workers have read them
        return metrics.compute()
