"""The spectral start spans the leading singular vectors of the normalised train graph, at the asked scale."""

import pytest
import torch
from promptmm.core.graph import BipartiteGraph
from promptmm.core.rows import IdTables
from promptmm.core.sides import SIDES
from promptmm.core.spectral import WholeRows, matrix_power, start_spectrally

NUM_USERS, NUM_ITEMS, DIM, SCALE = 90, 70, 8, 0.05


def start(graph: BipartiteGraph, dim: int = DIM, seed: int = 0, **exponents) -> tuple[torch.Tensor, torch.Tensor]:
    counts = graph.num_users, graph.num_items
    tables = IdTables.seeded(*counts, dim, 0.1, seed)
    with torch.no_grad():
        start_spectrally(WholeRows(graph, tables.user, tables.item), counts, SCALE, **exponents)
    return tables.user.detach(), tables.item.detach()


def dense(graph: BipartiteGraph) -> torch.Tensor:
    matrix = torch.zeros(graph.num_users, graph.num_items, dtype=torch.float64)
    matrix[graph.users.rows, graph.users.columns] = graph.user_weights.double()
    return matrix


@pytest.fixture
def graph() -> BipartiteGraph:
    """Users and items in four groups that mostly meet their own: four singular values lead. The last user and item have no edge."""
    generator = torch.Generator().manual_seed(3)
    likes = torch.where(torch.arange(NUM_USERS)[:, None] % 4 == torch.arange(NUM_ITEMS) % 4, 0.6, 0.05)
    pairs = torch.rand(NUM_USERS, NUM_ITEMS, generator=generator) < likes
    pairs[-1], pairs[:, -1] = False, False
    return BipartiteGraph.from_pairs(*pairs.nonzero(as_tuple=True), NUM_USERS, NUM_ITEMS)


def test_the_scores_are_the_best_approximation_of_a_rank(graph):
    users, items = start(graph, dim=4)
    left, values, right = torch.linalg.svd(dense(graph), full_matrices=False)
    best = (left[:, :4] * values[:4]) @ right[:4]
    scores = users.double() @ items.double().T
    torch.testing.assert_close(scores / scores.norm(), best / best.norm(), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (1.0, 0.5), (0.25, 0.8)])
def test_exponents_of_the_degrees_start_from_another_weighting(graph, a, b):
    users, items = start(graph, dim=4, exponents=(a, b))
    likes = (dense(graph) > 0).double()
    scales = [torch.where(degrees > 0, degrees.clamp(min=1) ** -power, 0.0) for degrees, power in ((likes.sum(1), a), (likes.sum(0), b))]
    left, values, right = torch.linalg.svd(scales[0][:, None] * likes * scales[1], full_matrices=False)
    best = (left[:, :4] * values[:4]) @ right[:4]
    scores = users.double() @ items.double().T
    torch.testing.assert_close(scores / scores.norm(), best / best.norm(), rtol=0, atol=2e-5)
    for rows in (users, items):
        assert float(rows.double().square().mean().sqrt()) == pytest.approx(SCALE, rel=1e-4)


def test_both_tables_have_the_scale_and_the_same_gram_matrix_up_to_it(graph):
    tables = start(graph)
    for rows in tables:
        assert float(rows.double().square().mean().sqrt()) == pytest.approx(SCALE, rel=1e-4)
    grams = [rows.double().T @ rows.double() / len(rows) for rows in tables]
    torch.testing.assert_close(grams[0], grams[1], rtol=0, atol=1e-4 * float(grams[0].abs().max()))


def test_users_and_items_without_edges_have_no_direction(graph):
    for rows in start(graph):
        assert rows[-1].abs().max() < 1e-6
        assert rows[:-1].norm(dim=1).min() > 1e-3


def test_a_dimension_larger_than_the_rank_is_filled_as_far_as_the_graph_goes():
    graph = BipartiteGraph.from_pairs(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 2]), 3, 3)
    users, items = start(graph, dim=6)
    scores = users.double() @ items.double().T
    expected = dense(graph)
    torch.testing.assert_close(scores / scores.norm(), expected / expected.norm(), rtol=0, atol=1e-5)
    assert all(torch.isfinite(rows).all() for rows in (users, items))


def test_the_same_seed_gives_the_same_bits_and_another_the_same_scores(graph):
    first, again, other = start(graph, 4), start(graph, 4), start(graph, 4, seed=1)
    assert all(torch.equal(first[side], again[side]) for side in SIDES)
    torch.testing.assert_close(first[0] @ first[1].T, other[0] @ other[1].T, rtol=0, atol=1e-4 * SCALE**2 * 10)
    assert not torch.allclose(first[0], other[0], atol=1e-3)


def test_powers_of_a_singular_matrix_act_on_its_span():
    root = torch.tensor([[2.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    gram = root @ root.T
    torch.testing.assert_close(matrix_power(gram, 0.5) @ matrix_power(gram, 0.5), gram)
    torch.testing.assert_close(matrix_power(gram, -1.0) @ gram @ gram, gram)
