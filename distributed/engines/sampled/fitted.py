"""Fits a linear model over the sharded graph, and offers its vectors to the epoch loop, which validates them and has no epoch."""

from collections.abc import Generator
from typing import NoReturn, cast

import torch

from ....core.linear.base import LinearTeacher
from ....core.linear.blocks import NodeBlocks
from ....core.sides import USERS
from ....core.teacher import teacher_kind
from ....graph_store.backend import GraphConnection, RowTable
from ....graph_store.dataset import Dataset
from ...artifacts.output import Output
from ...loop.checkpoints import Checkpoints, LoopFacts
from ...messages import TeacherJob
from ...worker import Worker
from .ranking import ShardedValidation
from .sharded_blocks import ShardedBlocks


class FittedTrainer:
    """Holds a model that was fitted without steps, in sharded tables; see `loop.trainer.Trainer`. Building it is a collective call.

    Args:
        job: The teacher's job.
        connection: Connection to the graph.
        worker: This worker.
        dataset: The dataset whose validation split measures the model.
    """

    num_examples = num_steps = 0

    def __init__(self, job: TeacherJob, connection: GraphConnection, worker: Worker, dataset: Dataset) -> None:
        self.worker, self._counts = worker, (connection.num_users, connection.num_items)
        kind = cast(type[LinearTeacher], teacher_kind(job.config))
        with torch.no_grad():
            blocks = cast(NodeBlocks, ShardedBlocks(connection, worker, "teacher"))  # its blocks are tables
            vectors = kind.fit_blocks(blocks, job.config.linear, job.seed)
        self.vectors = cast(tuple[RowTable, RowTable], vectors)
        train = connection.train_rows()
        self._validation = ShardedValidation.of(dataset, worker, train, job.evaluation, self.vectors[USERS].dim)

    def open(self, epochs: range) -> None:
        """Does nothing: there are no epochs."""

    def close(self) -> None:
        """Does nothing."""

    def start_epoch(self, epoch: int) -> NoReturn:
        raise AssertionError("a fitted teacher has no epochs")

    def batches(self, epoch: int) -> Generator[NoReturn, None, None]:
        raise AssertionError("a fitted teacher has no epochs")

    def train_step(self, batch: object, epoch: int) -> NoReturn:
        raise AssertionError("a fitted teacher has no epochs")

    def end_epoch(self) -> NoReturn:
        raise AssertionError("a fitted teacher has no epochs")

    def validate(self) -> dict[str, float] | None:
        """Computes the validation metrics; returns None without a validation split."""
        return None if self._validation is None else self._validation(*self.vectors)

    def keep(self) -> None:
        """Does nothing: there is one model."""

    def save(self, checkpoints: Checkpoints, epochs: int, facts: LoopFacts) -> None:
        """Does nothing: fitting again gives the same vectors."""

    def load(self, checkpoints: Checkpoints) -> LoopFacts | None:
        """Returns None: there is no epoch to go on from."""

    def output(self) -> Output:
        """Returns the vectors, which stay sharded."""
        return Output(self.worker, *self._counts, {}, None, {"final": self.vectors}, {}, {})
