"""Batches of the sampled engine: a task's batch with the blocks around it, and the requests for the rows that it reads."""

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from ....core.blocks import Blocks, append_distinct, without_pairs
from ....core.config import SamplingConfig
from ....core.sides import ITEMS, USERS
from ....graph_store.backend import GraphConnection
from ...tasks.base import Task
from ...worker import ProcessGroup, Worker
from ..examples import Examples
from ..view import TaskBatch
from .exchange import RowExchange, Traffic


@dataclass(frozen=True)
class SampledBatch:
    """One worker's share of a micro-batch: structure only, so that it can be made ahead of the weights.

    Attributes:
        own: The task's batch, with rows of the blocks' level 0 in place of dataset indices.
        blocks: Around its users and items.
        items: int64, dataset indices of all items whose rows are needed: the blocks', then further ones.
        exchanges: For the rows of the blocks' users and of `items`.
    """

    own: TaskBatch
    blocks: Blocks
    items: Tensor
    exchanges: tuple[RowExchange, RowExchange]

    @property
    def step(self) -> int:
        """Number within the epoch."""
        return self.own.step

    @property
    def size(self) -> int:
        """Examples of the step's global batch."""
        return self.own.size


@dataclass(frozen=True)
class BatchMaker:
    """Makes a worker's batches; collective in a process group of their own, since they are made in the background.

    Attributes:
        connection: To the graph.
        worker: This worker.
        examples: The train interactions.
        sampling: Fan-outs and what blocks leave out.
        traffic: Counts what is sent.
        group: The process group of the threads that make batches.
    """

    connection: GraphConnection
    worker: Worker
    examples: Examples
    sampling: SamplingConfig
    traffic: Traffic
    group: ProcessGroup | None

    def batches(self, task: Task, epoch: int, num_parts: int) -> Generator[SampledBatch, None, None]:
        """Yields every micro-batch of every step of an epoch; reads the graph, not the weights."""
        for batch in task.batches(self.examples, epoch, num_parts):
            yield self.located(batch, task.num_hops, epoch)

    def located(self, batch: TaskBatch, num_hops: int, epoch: int) -> SampledBatch:
        """Returns a task's batch with its blocks of `num_hops` hops and the requests for its rows.

        Args:
            batch: With dataset indices.
            num_hops: Hops that the task's vectors reach.
            epoch: Whose draws of neighbours these are.
        """
        users, user_rows = torch.unique(batch.users, return_inverse=True)
        items, item_rows = torch.unique(batch.items, return_inverse=True)
        blocks = self._blocks(users, items, num_hops, epoch, batch)
        all_items, further = append_distinct(blocks.items, batch.further)
        owners, both = self.connection.owners, ((USERS, blocks.users), (ITEMS, all_items))
        of_users, of_items = (RowExchange(self.worker, owners, side, ids, self.traffic, self.group) for side, ids in both)
        return SampledBatch(batch.located(user_rows, item_rows, further), blocks, all_items, (of_users, of_items))

    def _blocks(self, users: Tensor, items: Tensor, num_hops: int, epoch: int, batch: TaskBatch) -> Blocks:
        """Blocks around distinct users and items, int64 dataset indices."""
        examples, fan_outs = self.examples, self.sampling.fan_outs_of(num_hops)
        sampler = self.connection.neighbours.sampler(fan_outs, examples.seed, epoch * examples.num_steps + batch.step)
        if self.sampling.exclude_seed_edges:  # of the whole batch: what a worker sees does not depend on how many there are
            _, seed_users, positives = examples.of_step(batch.order_epoch, batch.step, slice(0, batch.size))
            sampler = without_pairs(sampler, seed_users, positives, examples.train.num_columns)
        return Blocks.sample(sampler, users, items, num_hops)
