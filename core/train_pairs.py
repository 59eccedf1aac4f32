"""Maps the places of an epoch's order to train pairs: every interaction once, user by user, or every user alike."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .graph import Csr
from .random import random_below
from .sampling import STREAM_POSITIVE, epoch_order, positions_of


class HistoryOrder:
    """Orders train interactions user by user: users in random order, each with all of its train items in the order of the CSR matrix.

    The order of the epoch that was asked for last is kept, 16 bytes a user.
    """

    def __init__(self, pointers: Tensor, seed: int) -> None:
        """Takes the CSR pointers of the users' train items, int64 [num_users + 1]; they may be memory-mapped."""
        self._pointers, self._seed = pointers, seed
        self._epoch: int | None = None
        self._users = self._ends = torch.empty(0, dtype=torch.int64)

    def at(self, epoch: int, places: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Returns the interactions at some places of an epoch's order, as places of the CSR matrix, and their users; int64 [n] each."""
        pointers = self._pointers
        if epoch != self._epoch:
            self._users = epoch_order(pointers.numel() - 1, self._seed, epoch).to(pointers.device)
            self._ends = (pointers[self._users + 1] - pointers[self._users]).cumsum(0)
            self._epoch = epoch
        wanted = positions_of(places, int(pointers[-1])).to(pointers.device)
        turn = torch.searchsorted(self._ends, wanted, right=True)
        users = self._users[turn]
        return pointers[users + 1] - self._ends[turn] + wanted, users


@dataclass(frozen=True)
class TrainPairs:
    """Draws the train pairs that an epoch visits, as functions of seed, epoch and place.

    An epoch has as many examples as there are train interactions. By interaction, each of them is visited once, in random order. By
    history, each is visited once too, user by user. By user, example e is of the (e mod n)-th of the n users who have train items, with
    one of that user's items, drawn uniformly: where few users have most of the interactions, a loss by interaction is these users' loss,
    while metrics are means over users.

    Attributes:
        train: Train items of every user; they may be memory-mapped.
        seed: Seed of order and items.
        users: int64 [n], the users who have train items, where every user is visited alike; else None.
        histories: The order where interactions are visited user by user; else None.
    """

    train: Csr
    seed: int
    users: Tensor | None = None
    histories: HistoryOrder | None = field(default=None, compare=False)

    @staticmethod
    def of(train: Csr, seed: int, examples: str) -> "TrainPairs":
        """Builds the pairs of `teacher.examples` or `student.examples`: "interactions", "histories" or "users"."""
        if examples == "histories":
            return TrainPairs(train, seed, histories=HistoryOrder(train.pointers, seed))
        return TrainPairs(train, seed, train.degrees.nonzero()[:, 0] if examples == "users" else None)

    @property
    def num_examples(self) -> int:
        """Returns the number of examples in an epoch, which is that of train interactions."""
        return self.train.columns.numel()

    def at(self, epoch: int, places: slice | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the examples at some places of an epoch's order, a run of them or int64 [n].

        Returns:
            Global example indices, the keys of further draws; and dataset indices of users and of positives; int64 [n] each.
        """
        train = self.train
        if self.histories is not None:
            examples, users = self.histories.at(epoch, places)
            return examples, users, train.columns[examples].long()
        examples = epoch_order(self.num_examples, self.seed, epoch, places).to(train.pointers.device)
        if self.users is None:
            users = torch.searchsorted(train.pointers, examples, right=True) - 1
            return examples, users, train.columns[examples].long()
        users = self.users[examples % self.users.numel()]
        first = train.pointers[users]
        drawn = random_below(train.pointers[users + 1] - first, STREAM_POSITIVE, self.seed, epoch, examples)
        return examples, users, train.columns[first + drawn].long()
