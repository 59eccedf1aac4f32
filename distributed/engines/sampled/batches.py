"""Makes the sampled engine's batches: a task's batch with the blocks around it, and the requests for the rows that it reads."""

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
    """Holds one worker's share of a micro-batch: structure without rows, so that it can be made before earlier steps are done.

    Attributes:
        own: The task's batch, with rows of the blocks' level 0 in place of dataset indices.
        blocks: The blocks around the batch's users and items.
        items: int64, dataset indices of all items whose rows are needed: those of the blocks, then the batch's further items.
        exchanges: The requests for the rows of the blocks' users and for those of `items`.
    """

    own: TaskBatch
    blocks: Blocks
    items: Tensor
    exchanges: tuple[RowExchange, RowExchange]

    @property
    def step(self) -> int:
        """Returns the step's number within the epoch."""
        return self.own.step

    @property
    def size(self) -> int:
        """Returns the number of examples in the step's global batch."""
        return self.own.size


@dataclass(frozen=True)
class BatchMaker:
    """Makes a worker's batches; the calls are collective in a separate process group, since a background thread makes them.

    Attributes:
        connection: Connection to the graph.
        worker: This worker.
        examples: The train interactions.
        sampling: Settings of the blocks.
        traffic: Counts the bytes that are sent.
        group: The process group of the threads that make batches; None with one worker.
    """

    connection: GraphConnection
    worker: Worker
    examples: Examples
    sampling: SamplingConfig
    traffic: Traffic
    group: ProcessGroup | None

    def batches(self, task: Task, epoch: int, num_parts: int) -> Generator[SampledBatch, None, None]:
        """Yields this worker's share of every micro-batch of an epoch; it reads the graph, but not the weights."""
        for batch in task.batches(self.examples, epoch, num_parts):
            yield self.located(batch, task.num_hops, epoch)

    def located(self, batch: TaskBatch, num_hops: int, epoch: int) -> SampledBatch:
        """Samples the blocks around a task's batch, and requests the rows that it reads; collective in the group.

        Args:
            batch: The task's batch, with dataset indices.
            num_hops: The number of hops that the task's vectors reach.
            epoch: The epoch, which is a key of the draw of neighbours.
        """
        users, user_rows = torch.unique(batch.users, return_inverse=True)
        items, item_rows = torch.unique(batch.items, return_inverse=True)
        blocks = self._blocks(users, items, num_hops, epoch, batch)
        all_items, further = append_distinct(blocks.items, batch.further)
        owners, both = self.connection.owners, ((USERS, blocks.users), (ITEMS, all_items))
        of_users, of_items = (RowExchange(self.worker, owners, side, ids, self.traffic, self.group) for side, ids in both)
        return SampledBatch(batch.located(user_rows, item_rows, further), blocks, all_items, (of_users, of_items))

    def _blocks(self, users: Tensor, items: Tensor, num_hops: int, epoch: int, batch: TaskBatch) -> Blocks:
        """Samples blocks around distinct users and items, int64 dataset indices."""
        examples, fan_outs = self.examples, self.sampling.fan_outs_of(num_hops)
        sampler = self.connection.neighbours.sampler(fan_outs, examples.seed, epoch * examples.num_steps + batch.step)
        if self.sampling.exclude_seed_edges:  # those of the global batch, so that blocks do not depend on the number of workers
            _, seed_users, positives = examples.of_step(batch.order_epoch, batch.step, slice(0, batch.size))
            sampler = without_pairs(sampler, seed_users, positives, examples.train.num_columns)
        return Blocks.sample(sampler, users, items, num_hops)
