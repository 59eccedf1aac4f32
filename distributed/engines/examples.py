"""The train interactions as examples of steps, the same in both engines: functions of seed, epoch and example."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.config import OptimizerConfig
from ...core.graph import Csr
from ...core.sampling import UnseenItems, UserWeights, epoch_order, share_of_part
from ..worker import Worker


@dataclass(frozen=True)
class Examples:
    """The train interactions, in the order of an epoch, as this worker sees them.

    Attributes:
        worker: This worker.
        train: Train items of every user, on the worker's device or memory-mapped.
        config: The batch size.
        user_weights: Weights of interactions in the loss, None where all are 1.
        seed: Seed of order and negatives.
        whole: Draws unseen items for any user; None where the keys of all users are not to be held in memory.
    """

    worker: Worker
    train: Csr
    config: OptimizerConfig
    user_weights: UserWeights | None
    seed: int
    whole: UnseenItems | None

    @staticmethod
    def of(worker: Worker, train: Csr, config: OptimizerConfig, user_balance: float, seed: int, in_memory: bool) -> "Examples":
        """Args: user_balance: exponent of the examples' weights; in_memory: whether the keys of all users' unseen items are held."""
        weights = UserWeights.of(train.pointers, user_balance)
        return Examples(worker, train, config, weights, seed, UnseenItems(train) if in_memory else None)

    @property
    def num_examples(self) -> int:
        """Train interactions."""
        return self.train.columns.numel()

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.num_examples // self.config.batch_size)

    def size_of(self, step: int) -> int:
        """Examples in a step's global batch."""
        return min(self.config.batch_size, self.num_examples - step * self.config.batch_size)

    def share_of(self, step: int, part: int = 0, num_parts: int = 1) -> slice:
        """Returns this worker's share of a step's global batch, or of one of its parts."""
        return share_of_part(self.size_of(step), part, num_parts, self.worker.rank, self.worker.world_size)

    def of_step(self, epoch: int, step: int, share: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Returns some of a step's examples: their indices, users and positives, int64 dataset indices [n] each."""
        first = step * self.config.batch_size
        order = epoch_order(self.num_examples, self.seed, epoch, slice(first + share.start, first + share.stop))
        examples = order.to(self.train.pointers.device)
        users = torch.searchsorted(self.train.pointers, examples, right=True) - 1
        return examples, users, self.train.columns[examples].long()

    def unseen(self, users: Tensor, examples: Tensor, count: int, epoch: int) -> Tensor:
        """Uniform items that the users have not seen, int64 [n, count]."""
        rows, drawn = self.unseen_of(users)
        return drawn.draw(rows, examples, count, self.seed, epoch)

    def unseen_of(self, users: Tensor) -> tuple[Tensor, UnseenItems]:
        """Returns what draws unseen items for some users, and the row of each user in it, int64 [n]."""
        if self.whole is not None:
            return users, self.whole
        distinct, rows = torch.unique(users, return_inverse=True)
        return rows, UnseenItems(self.train.select(distinct), distinct)

    def weights(self, users: Tensor) -> Tensor | None:
        """float32 [n], weights of some examples by their users, None where all are 1."""
        return self.user_weights(users) if self.user_weights else None
