"""Catalogs in shards are ranked as whole ones: exactly, and of equal scores the lower index first."""

import pytest
import torch
from promptmm.core.graph import Csr
from promptmm.core.item_shards import best_of_shards, rows_a_shard
from promptmm.core.top_k import FULL_COLUMNS

MIB = 1 << 20


def random_csr(num_rows: int, num_columns: int, degree: int) -> Csr:
    rows = torch.arange(num_rows).repeat_interleave(degree)
    columns = torch.cat([torch.randperm(num_columns)[:degree] for _ in range(num_rows)])
    return Csr.from_pairs(rows, columns, num_rows, num_columns)


def by_sorting(scores, k, seen):
    """The best items, of equal ones the lower index first."""
    scores = scores.clone()
    scores[seen.rows, seen.columns] = -torch.inf
    return torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]


@pytest.mark.parametrize("num_users", [1, 2, 70])
@pytest.mark.parametrize(("num_items", "shard", "k"), [(1000, 256, 20), (5003, 1280, 100), (300, 128, 150), (4097, 4096, 20)])
def test_lists_are_those_of_all_items(num_users, num_items, shard, k):
    torch.manual_seed(0)
    users, items, seen = torch.randn(num_users, 16), torch.randn(num_items, 16), random_csr(num_users, num_items, 30)
    assert torch.equal(best_of_shards(users, items, k, seen, shard=shard), by_sorting(users.double() @ items.double().T, k, seen))


@pytest.mark.parametrize("num_users", [1, 70])
@pytest.mark.parametrize(("num_items", "shard"), [(40_000, 13_440), (40_000, 39_936), (900, 256)])
def test_equal_vectors_in_different_shards_come_in_order(num_users, num_items, shard):
    """Seven vectors again and again: a large and a small shard are ranked in different ways, which round otherwise."""
    torch.manual_seed(0)
    users, few, seen = torch.randn(num_users, 64), torch.randn(7, 64), random_csr(num_users, num_items, 5)
    which = torch.arange(num_items) % 7
    assert torch.equal(best_of_shards(users, few[which], 30, seen, shard=shard), by_sorting((users @ few.T)[:, which], 30, seen))


def test_a_shard_whose_items_are_all_seen():
    users, items = torch.ones(2, 4), torch.arange(12).repeat_interleave(32).float()[:, None].expand(-1, 4).contiguous()
    seen = Csr.from_pairs(torch.zeros(128, dtype=torch.int64), torch.arange(256, 384), 2, 384)
    best = best_of_shards(users, items, 3, seen, shard=128)
    assert best.tolist() == [[224, 225, 226], [352, 353, 354]]


def test_shards_fit_and_are_even():
    assert rows_a_shard(10_000, 256, 16 * MIB) is None
    for memory in (8 * MIB, 3 * MIB, MIB):
        shard = rows_a_shard(10_000, 256, memory)
        assert shard % FULL_COLUMNS == 0
        assert shard * 256 <= memory / 4 + FULL_COLUMNS * 256
        count = -(-10_000 // shard)
        assert 10_000 - (count - 1) * shard > shard - count * FULL_COLUMNS
