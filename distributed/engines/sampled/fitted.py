"""Fits a linear model over the sharded graph, and offers its vectors to the epoch loop, which validates them and has no epoch."""

from typing import cast

import torch

from ....core.linear.base import LinearTeacher
from ....core.linear.blocks import NodeBlocks
from ....core.sides import USERS
from ....core.teacher import teacher_kind
from ....graph_store.backend import GraphConnection, RowTable
from ....graph_store.dataset import Dataset
from ...artifacts.output import Output
from ...loop.trainer import WithoutEpochs
from ...messages import TeacherJob
from ...worker import Worker
from .ranking import ShardedValidation
from .sharded_blocks import ShardedBlocks


class FittedTrainer(WithoutEpochs):
    """Holds a model that was fitted without steps, in sharded tables; see `loop.trainer.Trainer`. Building it is a collective call.

    Args:
        job: The teacher's job.
        connection: Connection to the graph.
        worker: This worker.
        dataset: The dataset whose validation split measures the model.
    """

    def __init__(self, job: TeacherJob, connection: GraphConnection, worker: Worker, dataset: Dataset) -> None:
        self.worker, self._counts = worker, (connection.num_users, connection.num_items)
        kind = cast(type[LinearTeacher], teacher_kind(job.config))
        with torch.no_grad():
            blocks = cast(NodeBlocks, ShardedBlocks(connection, worker, "teacher"))  # its blocks are tables
            vectors = kind.fit_blocks(blocks, job.config.linear, job.seed)
        self.vectors = cast(tuple[RowTable, RowTable], vectors)
        train = connection.train_rows()
        self._validation = ShardedValidation.of(dataset, worker, train, job.evaluation, self.vectors[USERS].dim)

    def validate(self) -> dict[str, float] | None:
        """Computes the validation metrics; returns None without a validation split."""
        return None if self._validation is None else self._validation(*self.vectors)

    def output(self) -> Output:
        """Returns the vectors, which stay sharded."""
        return Output(self.worker, *self._counts, {}, None, {"final": self.vectors}, {}, {})
