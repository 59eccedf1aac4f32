"""Gives the train interactions as examples of steps, in both engines alike, as functions of seed, epoch and example."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.config import OptimizerConfig
from ...core.graph import Csr
from ...core.sampling import UnseenItems, UserWeights, share_of_part
from ...core.train_pairs import TrainPairs
from ..worker import Worker

COUNTED = 1 << 24  # interactions that are counted at a time


@dataclass(frozen=True)
class Examples:
    """Gives one worker its examples of every step, and draws unseen items for them.

    Attributes:
        worker: This worker.
        train: Train items of every user, on the worker's device or memory-mapped.
        pairs: The train pairs that an epoch visits.
        config: Settings of the stage, of which the batch size is read.
        user_weights: Weights of interactions in the loss; None where all are 1.
        seed: Seed of order and negatives.
        whole: Draws unseen items for any user; None where memory should not hold the keys that this needs, one for each interaction.
    """

    worker: Worker
    train: Csr
    pairs: TrainPairs
    config: OptimizerConfig
    user_weights: UserWeights | None
    seed: int
    whole: UnseenItems | None

    @staticmethod
    def of(
        worker: Worker,
        train: Csr,
        config: OptimizerConfig,
        seed: int,
        *,
        user_balance: float = 0.0,
        examples: str = "interactions",
        in_memory: bool,
    ) -> "Examples":
        """Builds the examples of a stage.

        Args:
            worker, train, config, seed: As the attributes.
            user_balance: Exponent of the examples' weights.
            examples: What an epoch visits, as in `teacher.examples`.
            in_memory: Whether memory holds the keys that `UnseenItems` needs for all users, one for each interaction.
        """
        weights = UserWeights.of(train.pointers, user_balance)
        return Examples(
            worker, train, TrainPairs.of(train, seed, examples), config, weights, seed, UnseenItems(train) if in_memory else None
        )

    @functools.cached_property
    def item_degrees(self) -> Tensor:
        """Returns the number of train interactions of every item, int64 [num_items]; counted once, some interactions at a time."""
        degrees = torch.zeros(self.train.num_columns, dtype=torch.int64, device=self.train.columns.device)
        for columns in self.train.columns.split(COUNTED):
            degrees += torch.bincount(columns, minlength=self.train.num_columns)
        return degrees

    @property
    def num_examples(self) -> int:
        """Returns the number of train interactions."""
        return self.train.columns.numel()

    @property
    def num_steps(self) -> int:
        """Returns the number of steps in an epoch."""
        return -(-self.num_examples // self.config.batch_size)

    def size_of(self, step: int) -> int:
        """Returns the number of examples in a step's global batch."""
        return min(self.config.batch_size, self.num_examples - step * self.config.batch_size)

    def share_of(self, step: int, part: int = 0, num_parts: int = 1) -> slice:
        """Returns this worker's share of a step's global batch, or of one of its micro-batches, as positions in that batch."""
        return share_of_part(self.size_of(step), part, num_parts, self.worker.rank, self.worker.world_size)

    def of_step(self, epoch: int, step: int, share: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the examples at the positions `share` of a step's global batch.

        Returns:
            Global example indices, and dataset indices of users and of positives, int64 [n] each.
        """
        first = step * self.config.batch_size
        return self.pairs.at(epoch, slice(first + share.start, first + share.stop))

    def unseen(self, users: Tensor, examples: Tensor, count: int, epoch: int) -> Tensor:
        """Draws for each example `count` items that its user has not seen, uniformly: int64 [n, count]."""
        rows, unseen_items = self.unseen_of(users)
        return unseen_items.draw(rows, examples, count, self.seed, epoch)

    def unseen_of(self, users: Tensor) -> tuple[Tensor, UnseenItems]:
        """Returns an `UnseenItems` that covers the given users, int64 [n], and the row of each user in it, int64 [n]."""
        if self.whole is not None:
            return users, self.whole
        distinct, rows = torch.unique(users, return_inverse=True)
        return rows, UnseenItems(self.train.select(distinct), distinct)

    def weights(self, users: Tensor) -> Tensor | None:
        """Returns the weights of examples by their users, float32 [n]; None where all weights are 1."""
        return self.user_weights(users) if self.user_weights else None
