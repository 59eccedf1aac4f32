"""Scores from histories: rows, lists, rankings and products are those of the dense matrix diag(w) A W."""

import pytest
import torch
from promptmm.core import histories as module
from promptmm.core.graph import Csr
from promptmm.core.histories import HistoryScores, Similarities, add_list_scores, deviations, history_rows
from promptmm.core.objectives import label
from promptmm.core.ranking import held_out_places, rank_users, top_unseen
from promptmm.core.students import closest_tables
from promptmm.core.top_k import top_k
from promptmm.core.vectors import TeacherVectors

NUM_USERS, NUM_ITEMS, DIM = 40, 25, 5


def sparse(share, seed, rows, columns):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < share


def csr(matrix):
    return Csr.from_pairs(*matrix.nonzero(as_tuple=True), *matrix.shape)


def part(seed):
    """A part and its dense scores, float64; the first user has no history and the third item speaks for nothing."""
    generator = torch.Generator().manual_seed(seed)
    seen, kept = sparse(0.2, 7, NUM_USERS, NUM_ITEMS), sparse(0.4, seed, NUM_ITEMS, NUM_ITEMS)
    seen[0], kept[2] = False, False
    weights, values = torch.rand(NUM_USERS, generator=generator), torch.randn(NUM_ITEMS, NUM_ITEMS, generator=generator)
    entries = csr(kept)
    entries = Csr(entries.pointers, entries.columns.int(), NUM_ITEMS)  # as artifacts have them
    scores = HistoryScores(weights, csr(seen), Similarities(entries, values[kept]))
    return scores, weights.double()[:, None] * (seen.double() @ torch.where(kept, values, 0.0).double())


@pytest.fixture
def scored():
    """Two parts beside vectors, and the dense sum of all three."""
    generator = torch.Generator().manual_seed(1)
    users, items = (torch.randn(n, DIM, generator=generator) for n in (NUM_USERS, NUM_ITEMS))
    (one, first), (two, second) = part(3), part(4)
    return users, items, (one, two), users.double() @ items.double().T + first + second


def close(found, expected):
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_rows_are_those_of_the_matrix_whatever_users_are_asked_for():
    scores, dense = part(3)
    everyone = torch.arange(NUM_USERS)
    close(scores.rows(everyone), dense)
    some = torch.tensor([7, 0, 31, 7])
    assert torch.equal(scores.rows(some), scores.rows(everyone)[some])
    assert torch.equal(scores.select(some).rows(torch.arange(4)), scores.rows(some))
    assert scores.rows(some[:0]).shape == (0, NUM_ITEMS)
    assert history_rows([], some) is None


@pytest.mark.parametrize("entries", [1, 7, 50])
def test_rows_are_the_same_bits_however_many_entries_are_added_at_a_time(entries, monkeypatch):
    scores, everyone = part(3)[0], torch.arange(NUM_USERS)
    expected = scores.rows(everyone)
    monkeypatch.setattr(module, "BLOCK_ENTRIES", entries)
    assert torch.equal(scores.rows(everyone), expected)


def test_products_are_those_of_the_matrix():
    scores, dense = part(3)
    to_users, to_items = scores.products()
    x, y = torch.randn(NUM_ITEMS, 3), torch.randn(NUM_USERS, 3)
    close(to_users(x), dense @ x.double())
    close(to_items(y), dense.T @ y.double())


@pytest.mark.parametrize("block", [1, 60, 1 << 20])
def test_lists_have_the_same_scores_in_any_block_size(scored, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_SCORES", block)
    users, items, parts, dense = scored
    generator = torch.Generator().manual_seed(5)
    rows, lists = torch.randint(NUM_USERS, (90,), generator=generator), torch.randint(NUM_ITEMS, (90, 4), generator=generator)
    expected = dense[rows[:, None], lists]
    close(add_list_scores((users[rows][:, None] * items[lists]).sum(2), parts, rows, lists), expected)
    vectors = TeacherVectors(users, items, {}, {}, None, None, {}, histories=parts)
    close(label(vectors, rows, lists).scores, expected - expected[:, :1])
    close(label(vectors.detach(), rows, lists).scores, expected - expected[:, :1])
    close(deviations(users, items, parts), dense.std(1, correction=0))


@pytest.mark.parametrize("memory_mib", [1, 256])
@pytest.mark.parametrize("dim", [0, DIM])
def test_rankings_are_those_of_the_matrix(scored, memory_mib, dim, monkeypatch):
    monkeypatch.setattr("promptmm.core.top_k.CACHED_SCORES", 100)  # blocks of four users
    users, items, parts, dense = scored
    if not dim:  # a teacher without vectors
        users, items, dense = users[:, :0], items[:, :0], dense - users.double() @ items.double().T
    seen, held_out = parts[0].histories, csr(sparse(0.1, 9, NUM_USERS, NUM_ITEMS))
    masked = dense.clone()
    masked[seen.rows, seen.columns] = -torch.inf
    wanted = masked.sort(dim=1, descending=True, stable=True).indices
    found = torch.cat([ranked for _, _, ranked in top_k(users, items, 6, seen, memory_mib, parts)])
    assert torch.equal(found, wanted[:, :6])
    depth = min(6, NUM_ITEMS - int(seen.degrees.max()))
    assert torch.equal(top_unseen(users, items, seen, seen, 6, parts), wanted[:, :depth])
    places = held_out_places(users, items, held_out, seen, 6, memory_mib, parts)
    at = (wanted[held_out.rows] == held_out.columns[:, None]).int().argmax(1)
    at = torch.where(masked[held_out.rows, held_out.columns] == -torch.inf, 6, at.clamp(max=6))
    assert torch.equal(places, at)
    whole = rank_users(users, items, held_out, seen, [5], memory_mib, histories=parts)
    first, *others = (rank_users(users, items, held_out, seen, [5], memory_mib, rank, 3, histories=parts) for rank in range(3))
    for other in others:
        for total, share in zip(first.states(), other.states()):
            total += share
    assert first.compute() == pytest.approx(whole.compute())


def test_scores_without_spread_have_no_deviation():
    everyone = csr(torch.ones(2, 3, dtype=torch.bool))
    flat = Similarities(csr(torch.ones(3, 3, dtype=torch.bool)), torch.full((9,), 0.1))
    parts = [HistoryScores(torch.ones(2), everyone, flat)]
    assert deviations(torch.zeros(2, 0), torch.zeros(3, 0), parts).tolist() == [0, 0]


@pytest.mark.parametrize("dim", [4, NUM_ITEMS, NUM_ITEMS + 3])
def test_the_closest_tables_are_those_of_the_singular_value_decomposition(scored, dim):
    users, items, parts, dense = scored
    left, values, right = torch.linalg.svd(dense, full_matrices=False)
    best = (left[:, :dim] * values[:dim]) @ right[:dim]
    tables = closest_tables(users, items, parts, dim, seed=0)
    assert (tables[0].shape, tables[1].shape) == ((NUM_USERS, dim), (NUM_ITEMS, dim))
    torch.testing.assert_close((tables[0] @ tables[1].T).double(), best, atol=2e-3, rtol=0)
