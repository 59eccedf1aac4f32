"""Lists for one user or two, for whom a transposed copy of the items is kept."""

import pytest
import torch
from promptmm.core import item_parts
from promptmm.core.graph import Csr
from promptmm.core.item_parts import ItemPart, rank_parts


@pytest.mark.parametrize("num_items", [1, 7, 100, 1003])
@pytest.mark.parametrize("num_users", [1, 2])
def test_later_requests_have_the_lists_of_the_first(num_items, num_users):
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randn(num_users, 16, generator=generator), torch.randn(num_items, 16, generator=generator)
    seen = Csr(torch.arange(num_users + 1), torch.zeros(num_users, dtype=torch.int64), num_items)
    part, k = ItemPart(items), min(20, num_items)
    first, second = (rank_parts(users, [part], k, seen, None) for _ in range(2))
    for one, other in zip(first, second):
        assert torch.equal(one, other)
    many = rank_parts(users.repeat(3, 1), [part], k, Csr(torch.arange(3 * num_users + 1), seen.columns.repeat(3), num_items), None)
    assert torch.equal(first[1], many[1][:num_users])  # lists of more users are made without the copy
    torch.testing.assert_close(first[0], many[0][:num_users])


@pytest.mark.parametrize("num_users", [1, 2])
@pytest.mark.parametrize("dim", [1, 13, 64])
@pytest.mark.parametrize("num_items", [*range(1, 40), 1003])
def test_items_of_equal_vectors_come_in_their_order(num_items, dim, num_users):
    generator = torch.Generator().manual_seed(num_items)
    users = torch.randn(num_users, dim, generator=generator)
    items = torch.randn(1, dim, generator=generator).repeat(num_items, 1)
    part = ItemPart(items)
    for _ in range(2):
        assert rank_parts(users, [part], num_items, None, None)[1].tolist() == [list(range(num_items))] * num_users


def test_no_copy_for_many_users_or_of_a_large_part(monkeypatch):
    part = ItemPart(torch.ones(10, 4))
    for _ in range(3):
        assert part.transposed(3) is None
    monkeypatch.setattr(item_parts, "TRANSPOSED_BYTES", 10 * 4 * 4 - 1)
    for _ in range(3):
        assert part.transposed(1) is None
