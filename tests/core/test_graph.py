"""The graph and its normalised propagation against dense matrices."""

import numpy as np
import pytest
import torch
from promptmm.core.graph import BipartiteGraph, Csr, light_propagation
from torch.autograd import gradcheck

NUM_USERS, NUM_ITEMS = 6, 5
# User 4 and item 3 have no interactions.
USERS = torch.tensor([0, 0, 0, 1, 2, 2, 3, 5, 5])
ITEMS = torch.tensor([0, 1, 4, 1, 0, 2, 1, 4, 2])


@pytest.fixture
def graph():
    return BipartiteGraph.from_pairs(USERS, ITEMS, NUM_USERS, NUM_ITEMS)


def dense_normalised(users, items, num_users, num_items):
    """Ã = D_U^-1/2 A D_I^-1/2, 0 where a degree is 0."""
    adjacency = np.zeros((num_users, num_items))
    for u, i in zip(users.tolist(), items.tolist()):
        adjacency[u, i] = 1
    out = np.zeros_like(adjacency)
    for u in range(num_users):
        for i in range(num_items):
            if adjacency[u, i]:
                out[u, i] = 1 / np.sqrt(adjacency[u].sum() * adjacency[:, i].sum())
    return out


DENSE = dense_normalised(USERS, ITEMS, NUM_USERS, NUM_ITEMS)


def draw(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_propagation(graph):
    of_items, of_users = draw(0, NUM_ITEMS, 3), draw(1, NUM_USERS, 3)
    # The degree scales are float32.
    np.testing.assert_allclose(graph.to_users(of_items), DENSE @ of_items.numpy(), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(graph.to_items(of_users), DENSE.T @ of_users.numpy(), rtol=1e-6, atol=1e-7)
    assert torch.equal(graph.to_users(of_items)[4], torch.zeros(3, dtype=torch.float64))
    assert torch.equal(graph.to_items(of_users)[3], torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_light_propagation(graph, num_layers):
    users, items = draw(2, NUM_USERS, 3), draw(3, NUM_ITEMS, 3)
    both = np.block([[np.zeros((NUM_USERS, NUM_USERS)), DENSE], [DENSE.T, np.zeros((NUM_ITEMS, NUM_ITEMS))]])
    layers = [np.vstack([users, items])]
    for _ in range(num_layers):
        layers.append(both @ layers[-1])
    expected = np.mean(layers, axis=0)
    actual = torch.cat(light_propagation(graph, users, items, num_layers))
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def test_gradients(graph):
    assert gradcheck(graph.to_users, (draw(4, NUM_ITEMS, 2).requires_grad_(),))
    assert gradcheck(graph.to_items, (draw(5, NUM_USERS, 2).requires_grad_(),))
    users, items = draw(6, NUM_USERS, 2).requires_grad_(), draw(7, NUM_ITEMS, 2).requires_grad_()
    assert gradcheck(lambda u, i: light_propagation(graph, u, i, 2), (users, items))


def test_the_gradient_of_a_view_that_is_not_contiguous(graph):
    x = draw(8, NUM_ITEMS, 3).requires_grad_()
    graph.to_users(x).T[1].sum().backward()
    expected = np.zeros((NUM_ITEMS, 3))
    expected[:, 1] = DENSE.sum(0)
    np.testing.assert_allclose(x.grad, expected, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_dtypes(graph, dtype, tolerance):
    x = draw(9, NUM_ITEMS, 3).to(dtype).requires_grad_()
    out = graph.to_users(x)
    assert out.dtype == dtype
    out.sum().backward()
    np.testing.assert_allclose(out.detach().double(), DENSE @ x.detach().double().numpy(), atol=tolerance)
    np.testing.assert_allclose(x.grad.double(), DENSE.sum(0)[:, None].repeat(3, 1), atol=tolerance)


def test_the_order_of_the_pairs_does_not_matter(graph):
    for seed in range(3):
        order = torch.randperm(len(USERS), generator=torch.Generator().manual_seed(seed))
        other = BipartiteGraph.from_pairs(USERS[order], ITEMS[order], NUM_USERS, NUM_ITEMS)
        for mine, its in ((graph.users, other.users), (graph.items, other.items)):
            assert torch.equal(mine.pointers, its.pointers)
            assert torch.equal(mine.columns, its.columns)
        x = draw(10, NUM_ITEMS, 3).float()
        assert torch.equal(graph.to_users(x), other.to_users(x))


def test_a_graph_without_edges():
    nothing = torch.empty(0, dtype=torch.int64)
    graph = BipartiteGraph.from_pairs(nothing, nothing, 2, 3)
    x = draw(11, 3, 4).requires_grad_()
    out = graph.to_users(x)
    assert torch.equal(out, torch.zeros(2, 4, dtype=torch.float64))
    out.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_csr(graph):
    csr = graph.users
    assert (csr.num_rows, csr.num_columns) == (NUM_USERS, NUM_ITEMS)
    assert csr.degrees.tolist() == [3, 1, 2, 1, 0, 2]
    assert csr.rows.tolist() == [0, 0, 0, 1, 2, 2, 3, 5, 5]
    assert csr.columns.tolist() == [0, 1, 4, 1, 0, 2, 1, 2, 4]
    assert graph.items.degrees.tolist() == [2, 3, 2, 0, 2]
    assert (graph.num_users, graph.num_items) == (NUM_USERS, NUM_ITEMS)


@pytest.mark.parametrize("rows", [[0], [5, 0], [4, 2, 2, 4], [4], [], list(range(NUM_USERS))])
def test_select(graph, rows):
    picked = graph.users.select(torch.tensor(rows, dtype=torch.int64))
    by_user = [sorted(ITEMS[user == USERS].tolist()) for user in range(NUM_USERS)]
    assert picked.num_rows == len(rows)
    assert picked.num_columns == NUM_ITEMS
    assert [c.tolist() for c in picked.columns.split(picked.degrees.tolist())][: len(rows)] == [by_user[r] for r in rows]


def test_a_pair_that_occurs_twice_stays_twice():
    csr = Csr.from_pairs(torch.tensor([1, 0, 1]), torch.tensor([2, 1, 2]), 3, 4)
    assert csr.pointers.tolist() == [0, 1, 3, 3]
    assert csr.columns.tolist() == [1, 2, 2]
