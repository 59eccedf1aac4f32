"""The item graph against a dense reference: neighbours, ties, empty rows, normalisation and gradients."""

import pytest
import torch
from promptmm.core.errors import InputError
from promptmm.core.graph import EDGES_AT_A_TIME
from promptmm.core.item_graph import ItemGraph, nearest_neighbours


def rows_with_ties(num_rows=60, dim=3):
    """Rows of -1, 0 and 1: many are alike, so that similarities tie, and some are zero."""
    return torch.randint(-1, 2, (num_rows, dim), generator=torch.Generator().manual_seed(3)).float()


def brute_force(rows, k):
    """Indices and similarities by a stable sort of the whole matrix, in float64 rounded to float32."""
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    scores = (unit @ unit.T).float().round(decimals=5)
    present = rows.any(1)
    scores[:, ~present] = -torch.inf
    scores.fill_diagonal_(-torch.inf)
    values, columns = torch.sort(scores, dim=1, descending=True, stable=True)
    values, columns = values[:, :k], columns[:, :k]
    empty = (values == -torch.inf) | ~present[:, None]
    return columns.masked_fill(empty, -1), values.masked_fill(empty, 0.0)


def dense(graph):
    """The weights as a matrix."""
    matrix = torch.zeros(graph.num_items, graph.num_items, dtype=graph.weights.dtype)
    return matrix.index_put((graph.neighbours.rows, graph.neighbours.columns), graph.weights)


@pytest.mark.parametrize("k", [1, 4, 10])
@pytest.mark.parametrize("memory_mib", [0, 1, 256])  # 0: blocks as small as they can be
def test_neighbours_are_those_of_brute_force(k, memory_mib):
    rows = torch.randn(83, 16, generator=torch.Generator().manual_seed(0))
    rows[5] = rows[40] = 0
    ids, similarities = nearest_neighbours(rows, k, memory_mib)
    expected, values = brute_force(rows, k)
    assert torch.equal(ids, expected)
    torch.testing.assert_close(similarities, values, atol=2e-5, rtol=0)


@pytest.mark.parametrize("memory_mib", [0, 1])
def test_ties_go_to_the_lower_index(memory_mib):
    rows = rows_with_ties().sign() * torch.tensor([1.0, 0.0, 0.0])  # cosines are exactly -1, 0 or 1
    ids, _ = nearest_neighbours(rows, 7, memory_mib)
    assert torch.equal(ids, brute_force(rows, 7)[0])


def test_rows_of_zeros_have_no_neighbours_and_are_nobodys():
    rows = rows_with_ties()
    absent = ~rows.any(1)
    assert absent.any()
    ids, similarities = nearest_neighbours(rows, 5)
    assert (ids[absent] == -1).all()
    assert not similarities[absent].any()
    assert not torch.isin(ids, absent.nonzero()).any()
    assert not (ids == torch.arange(len(rows))[:, None]).any()


def test_fewer_rows_than_neighbours():
    ids, similarities = nearest_neighbours(torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 0.1]]), 4)
    assert ids.tolist() == [[2, -1, -1, -1], [-1] * 4, [0, -1, -1, -1]]
    assert similarities[0, 0] > 0.99
    alone, _ = nearest_neighbours(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 2)
    assert (alone == -1).all()
    with pytest.raises(InputError, match="at least 1"):
        nearest_neighbours(torch.ones(3, 2), 0)


def test_workers_share_the_search():
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    rows[20] = 0
    parts = [nearest_neighbours(rows, 3, wanted=slice(first, min(first + 17, 50))) for first in range(0, 50, 17)]
    assert torch.equal(torch.cat([ids for ids, _ in parts]), nearest_neighbours(rows, 3)[0])


def test_weights_are_the_symmetrically_normalised_similarities():
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
    rows[7] = 0
    ids, similarities = nearest_neighbours(rows, 5)
    matrix = torch.zeros(40, 40)
    at = ids >= 0
    matrix[torch.arange(40)[:, None].expand_as(ids)[at], ids[at]] = similarities[at].clamp(min=0)
    scale = matrix.sum(1).clamp(min=1e-12).rsqrt() * (matrix.sum(1) > 0)
    graph = ItemGraph.from_neighbours(ids, similarities)
    torch.testing.assert_close(dense(graph), scale[:, None] * matrix * scale)
    x = torch.randn(40, 4)
    torch.testing.assert_close(graph.to("cpu").propagate(x), dense(graph) @ x)
    assert not graph.propagate(x)[7].any()


def test_propagation_has_the_gradients_of_rows_and_similarities():
    rows = torch.randn(15, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    graph = ItemGraph.from_neighbours(*nearest_neighbours(rows, 3))
    unit = torch.nn.functional.normalize(rows, dim=1).requires_grad_()
    x = torch.randn(15, 4, dtype=torch.float64, requires_grad=True)
    assert (graph.similarities(unit) > 0).all()
    assert torch.autograd.gradcheck(lambda u, x: graph.with_similarities(graph.similarities(u)).propagate(x), (unit, x))


def test_more_edges_than_a_chunk_and_similarities_that_turned_negative():
    num_items, k = EDGES_AT_A_TIME // 16 + 3, 16
    ids = (torch.arange(num_items)[:, None] + torch.arange(1, k + 1)) % num_items
    graph = ItemGraph.from_neighbours(ids, torch.ones(num_items, k))
    x = torch.randn(num_items, 2, requires_grad=True)
    torch.testing.assert_close(graph.propagate(x), x[ids].mean(1))
    torch.testing.assert_close(graph.similarities(x), (x[graph.neighbours.rows] * x[graph.neighbours.columns]).sum(1))
    graph.with_similarities(graph.similarities(x)).propagate(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert not graph.with_similarities(-torch.ones(num_items * k)).propagate(x).any()
