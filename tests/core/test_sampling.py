"""Examples and negatives: uniform over unseen items, and functions of (seed, epoch, example) alone."""

import pytest
import torch
from promptmm.core import sampling
from promptmm.core.errors import InputError
from promptmm.core.graph import Csr
from promptmm.core.sampling import UnseenItems, WeightedUnseenItems, epoch_order, rank_slice, share_of_part

NUM_ITEMS = 8
SEEN = [[], [0], [7], [0, 1, 2], [5, 6, 7], [1, 3, 5, 7], [0, 1, 2, 3, 4, 6, 7], [1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6]]


def train_of(seen, num_items=NUM_ITEMS):
    rows = [user for user, items in enumerate(seen) for _ in items]
    columns = [item for items in seen for item in items]
    return Csr.from_pairs(torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64), len(seen), num_items)


def test_draws_are_uniform_over_the_unseen_items():
    unseen, num_draws = UnseenItems(train_of(SEEN)), 4000
    draws = unseen.draw(torch.arange(len(SEEN)), torch.arange(len(SEEN)), num_draws, seed=3, epoch=1)
    assert draws.shape == (len(SEEN), num_draws)
    for user, seen in enumerate(SEEN):
        counts = torch.bincount(draws[user], minlength=NUM_ITEMS)
        allowed = [item for item in range(NUM_ITEMS) if item not in seen]
        assert counts[seen].sum() == 0
        expected = num_draws / len(allowed)
        chi_square = float(((counts[allowed] - expected) ** 2 / expected).sum())
        assert chi_square < 30  # at most 7 degrees of freedom: p < 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_no_collision_on_random_graphs(seed):
    generator = torch.Generator().manual_seed(seed)
    num_users, num_items = 50, 30
    share = torch.linspace(0, 1, num_users)[:, None]
    seen = torch.rand(num_users, num_items, generator=generator) < share
    seen[:, 11] = False  # nobody has seen everything
    train = Csr.from_pairs(*seen.nonzero().unbind(1), num_users, num_items)
    draws = UnseenItems(train).draw(torch.arange(num_users), torch.arange(num_users), 300, seed, 0)
    assert not seen.gather(1, draws).any()
    assert (draws >= 0).all()
    assert (draws < num_items).all()


def test_draws_depend_on_seed_epoch_and_example_alone():
    unseen = UnseenItems(train_of(SEEN))
    users, examples = torch.arange(len(SEEN)).repeat(4), torch.arange(4 * len(SEEN)) + 1000
    whole = unseen.draw(users, examples, 6, seed=5, epoch=2)
    assert torch.equal(unseen.draw(users, examples, 6, seed=5, epoch=2), whole)
    some = torch.tensor([7, 3, 30, 12])
    assert torch.equal(unseen.draw(users[some], examples[some], 6, seed=5, epoch=2), whole[some])
    assert torch.equal(unseen.draw(users, examples, 2, seed=5, epoch=2), whole[:, :2])  # a longer list only adds draws
    for seed, epoch, shift in ((6, 2, 0), (5, 3, 0), (5, 2, 1)):
        assert not torch.equal(unseen.draw(users, examples + shift, 6, seed, epoch), whole)


def test_streams_are_independent():
    unseen = UnseenItems(train_of([[]], 1000))
    user, example = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    first, second = (unseen.draw(user, example, 50, 0, 0, stream) for stream in (1, 5))
    assert (first == second).sum() < 5


def test_a_user_who_has_seen_everything():
    with pytest.raises(InputError, match=r"user index 1 has seen all 3 items in train: there is no negative"):
        UnseenItems(train_of([[0], [0, 1, 2]], 3))


def test_epoch_order():
    orders = [epoch_order(100, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    for order in orders:
        assert order.sort().values.tolist() == list(range(100))
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)
    assert torch.equal(epoch_order(100, 1, 2), orders[-1])
    assert epoch_order(0, 0, 0).shape == (0,)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("num_rows", [0, 1, 4, 5, 17, 20])
def test_rank_slices_partition_the_batch(num_rows, world_size):
    parts = [list(range(num_rows))[rank_slice(num_rows, rank, world_size)] for rank in range(world_size)]
    assert [row for part in parts for row in part] == list(range(num_rows))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("num_rows", "num_parts", "world_size"), [(17, 3, 2), (2, 4, 3), (20, 5, 4), (0, 2, 2)])
def test_shares_of_parts_partition_the_batch(num_rows, num_parts, world_size):
    parts = [[share_of_part(num_rows, part, num_parts, rank, world_size) for rank in range(world_size)] for part in range(num_parts)]
    assert [row for part in parts for share in part for row in range(num_rows)[share]] == list(range(num_rows))
    for part, shares in enumerate(parts):
        assert [row for share in shares for row in range(num_rows)[share]] == list(range(num_rows)[rank_slice(num_rows, part, num_parts)])


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
def test_user_weights(monkeypatch, exponent):
    """Degrees 3, 0, 1, 6, 1: the mean over the interactions is 1, and users alike have all the same sum."""
    monkeypatch.setattr(sampling, "WEIGHT_ROWS", 2)
    pointers = torch.tensor([0, 3, 3, 4, 10, 11])
    users = torch.repeat_interleave(torch.arange(5), pointers.diff())
    weights = sampling.UserWeights.of(pointers, exponent)(users)
    assert weights.dtype == torch.float32
    assert float(weights.mean()) == pytest.approx(1, rel=1e-6)
    assert float(weights[0] / weights[3]) == pytest.approx(3**-exponent, rel=1e-6)
    if exponent == 1:
        sums = torch.zeros(5).index_add_(0, users, weights)
        torch.testing.assert_close(sums, torch.tensor([1.0, 0, 1, 1, 1]) * 11 / 4)


def test_without_user_balance_there_are_no_weights():
    assert sampling.UserWeights.of(torch.tensor([0, 3, 4]), 0.0) is None


@pytest.mark.parametrize("seed", range(3))
def test_weighted_draws_do_not_meet_what_is_seen(seed):
    """On random graphs, with weights over nine orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    num_users, num_items = 50, 30
    seen = torch.rand(num_users, num_items, generator=generator) < torch.linspace(0, 1, num_users)[:, None]
    seen[:, 11] = False  # nobody has seen everything
    train = Csr.from_pairs(*seen.nonzero().unbind(1), num_users, num_items)
    weights = WeightedUnseenItems.scaled(10 ** (9 * torch.rand(num_items, generator=generator)))
    assert int(weights.min()) >= 1
    assert int(weights.sum()) < 2**31
    draws = WeightedUnseenItems(train, weights).draw(torch.arange(num_users), torch.arange(num_users), 300, seed, 0)
    assert not seen.gather(1, draws).any()
    assert (draws < num_items).all()


def test_equal_weights_draw_as_none_do():
    """Weight 1 for all: the line has a point for each item, and the draws are those of `UnseenItems` with the same keys."""
    train, users = train_of(SEEN), torch.arange(len(SEEN))
    plain = UnseenItems(train).draw(users, users, 50, 3, 1, stream=5)
    assert torch.equal(WeightedUnseenItems(train, torch.ones(NUM_ITEMS, dtype=torch.int64)).draw(users, users, 50, 3, 1, stream=5), plain)
