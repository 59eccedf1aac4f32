"""Rows of a student from the teacher's final vectors: no other ones of their size keep the scores better (docs/method.md 2)."""

import pytest
import torch
from promptmm.core.students import project, warm_start_maps

NUM_USERS, NUM_ITEMS, DIM = 6, 5, 4


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def frozen():
    """A teacher's final vectors."""
    return draw(0, NUM_USERS, DIM), draw(1, NUM_ITEMS, DIM)


def test_a_warm_start_of_the_same_size_copies(frozen):
    users, items = project(*frozen, DIM)
    assert torch.equal(users, frozen[0])
    assert torch.equal(items, frozen[1])


def test_a_warm_start_of_a_larger_size_keeps_the_scores(frozen):
    users, items = project(*frozen, DIM + 3)
    torch.testing.assert_close(users @ items.T, frozen[0] @ frozen[1].T)
    assert not users[:, DIM:].any()


def test_a_warm_start_of_a_smaller_size_keeps_what_it_can():
    basis = torch.linalg.qr(draw(2, 8, 8))[0]
    low_rank = [draw(seed, size, 3) @ basis[:3] for seed, size in ((3, 40), (4, 30))]
    users, items = project(*low_rank, 3)
    assert users.shape == (40, 3)
    assert users.dtype == torch.float32
    torch.testing.assert_close(users @ items.T, low_rank[0] @ low_rank[1].T, rtol=1e-4, atol=1e-4)

    # With noise in all directions nothing of rank 3 keeps the scores better: the error is that of their truncated decomposition.
    full = [(x + 0.2 * draw(5 + n, *x.shape)).double() for n, x in enumerate(low_rank)]
    full[1][:, 5] = 0  # items need not use every dimension
    scores = full[0] @ full[1].T
    kept = project(*full, 3)
    assert float((kept[0] @ kept[1].T - scores).norm()) == pytest.approx(float(torch.linalg.svdvals(scores)[3:].norm()), rel=1e-9)
    assert all(x.norm(dim=0)[0] > x.norm(dim=0)[2] for x in kept)  # what matters more stands first, on both sides alike


@pytest.mark.parametrize("dim", [2, 3, 4, 6])
def test_chunks_and_workers_have_the_maps_of_the_whole(dim):
    users, items = draw(7, 40, DIM), draw(8, 30, DIM)
    whole = warm_start_maps([[users], [items]], dim)
    chunks = warm_start_maps([users.split(7), [items, items[:0]]], dim)
    for a, b in zip(chunks, whole):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)

    grams = []
    for part in (slice(0, 11), slice(11, 40)):
        warm_start_maps([[users[part]], [items[part]]], dim, lambda tensors: grams.append([t.clone() for t in tensors]))

    def sum_(tensors):
        for tensor, *parts in zip(tensors, *grams):
            tensor.copy_(sum(parts))

    for a, b in zip(warm_start_maps([[users[:11]], [items[:11]]], dim, sum_), whole):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
