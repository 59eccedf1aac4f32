"""Maps the places of an epoch's order to train pairs: every interaction once, or every user alike."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .graph import Csr
from .random import random_below
from .sampling import STREAM_POSITIVE, epoch_order


@dataclass(frozen=True)
class TrainPairs:
    """Draws the train pairs that an epoch visits, as functions of seed, epoch and place.

    An epoch has as many examples as there are train interactions. By interaction, each of them is visited once. By user, example e is of
    the (e mod n)-th of the n users who have train items, with one of that user's items, drawn uniformly: where few users have most of the
    interactions, a loss by interaction is these users' loss, while metrics are means over users.

    Attributes:
        train: Train items of every user; they may be memory-mapped.
        seed: Seed of order and items.
        users: int64 [n], the users who have train items; None where examples are visited by interaction.
    """

    train: Csr
    seed: int
    users: Tensor | None = None

    @staticmethod
    def of(train: Csr, seed: int, by_user: bool) -> "TrainPairs":
        """Builds the pairs of `teacher.examples` or `student.examples`."""
        return TrainPairs(train, seed, train.degrees.nonzero()[:, 0] if by_user else None)

    @property
    def num_examples(self) -> int:
        """Returns the number of examples in an epoch, which is that of train interactions."""
        return self.train.columns.numel()

    def at(self, epoch: int, places: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the examples at some places of an epoch's order.

        Returns:
            Global example indices, the keys of further draws; and dataset indices of users and of positives; int64 [n] each.
        """
        train = self.train
        examples = epoch_order(self.num_examples, self.seed, epoch, places).to(train.pointers.device)
        if self.users is None:
            users = torch.searchsorted(train.pointers, examples, right=True) - 1
            return examples, users, train.columns[examples].long()
        users = self.users[examples % self.users.numel()]
        first = train.pointers[users]
        drawn = random_below(train.pointers[users + 1] - first, STREAM_POSITIVE, self.seed, epoch, examples)
        return examples, users, train.columns[first + drawn].long()
