"""Which train pairs an epoch visits: every interaction once, user by user, or every user alike."""

import pytest
import torch
from promptmm.core.graph import Csr
from promptmm.core.train_pairs import TrainPairs

DEGREES = [1, 0, 40, 3, 0, 16]


@pytest.fixture
def train() -> Csr:
    """Users with very different numbers of items; the second and the fifth have none."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randperm(50, generator=generator)[:degree].sort().values for degree in DEGREES]
    users = torch.repeat_interleave(torch.arange(len(DEGREES)), torch.tensor(DEGREES))
    return Csr.from_pairs(users, torch.cat(rows), len(DEGREES), 50)


def whole(pairs: TrainPairs, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return pairs.at(epoch, slice(0, pairs.num_examples))


def test_by_interaction_an_epoch_is_all_train_pairs(train):
    examples, users, positives = whole(TrainPairs.of(train, 7, examples="interactions"))
    assert sorted(examples.tolist()) == list(range(sum(DEGREES)))
    assert torch.equal(users, train.rows[examples])
    assert torch.equal(positives, train.columns[examples])


def test_by_history_an_epoch_is_all_train_pairs_user_by_user(train):
    pairs, orders = TrainPairs.of(train, 7, examples="histories"), set()
    for epoch in range(8):
        examples, users, positives = whole(pairs, epoch)
        assert sorted(examples.tolist()) == list(range(sum(DEGREES)))
        assert torch.equal(users, train.rows[examples])
        assert torch.equal(positives, train.columns[examples])
        order = torch.unique_consecutive(users).tolist()
        assert sorted(order) == [0, 2, 3, 5]  # each in one piece
        orders.add(tuple(order))
    assert len(orders) > 3


def test_by_user_an_epoch_visits_every_user_with_items_alike(train):
    pairs = TrainPairs.of(train, 7, examples="users")
    for epoch in range(3):
        examples, users, positives = whole(pairs, epoch)
        assert len(examples) == sum(DEGREES) == pairs.num_examples
        counts = torch.bincount(users, minlength=len(DEGREES))
        assert counts[[1, 4]].tolist() == [0, 0]
        assert counts[[0, 2, 3, 5]].tolist() == [15, 15, 15, 15]
        assert all(int(item) in train.columns[train.pointers[u] : train.pointers[u + 1]] for u, item in zip(users, positives))


def test_by_user_the_positives_are_uniform_over_a_users_items(train):
    pairs = TrainPairs.of(train, 3, examples="users")
    drawn = torch.cat([positives[users == 3] for _, users, positives in (whole(pairs, epoch) for epoch in range(200))])
    shares = torch.bincount(drawn, minlength=50)[train.columns[train.pointers[3] : train.pointers[4]].long()] / len(drawn)
    assert len(drawn) == 3000
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), rtol=0, atol=0.04)


@pytest.mark.parametrize("examples", ["interactions", "histories", "users"])
def test_pairs_are_functions_of_seed_epoch_and_place(train, examples):
    pairs = TrainPairs.of(train, 7, examples)
    for part, wanted in zip(pairs.at(2, slice(11, 31)), whole(pairs, 2)):
        assert torch.equal(part, wanted[11:31])
    assert not torch.equal(whole(pairs, 0)[2], whole(pairs, 1)[2])
    assert not torch.equal(whole(pairs, 0)[2], whole(TrainPairs.of(train, 8, examples), 0)[2])
