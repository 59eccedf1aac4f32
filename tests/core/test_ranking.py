"""Full ranking and its metrics against brute force, whatever the blocks and the workers."""

import math
import re

import numpy as np
import pytest
import torch
from promptmm.core import top_k as kernel
from promptmm.core.errors import InputError
from promptmm.core.graph import Csr
from promptmm.core.ranking import (
    evaluate,
    held_out_places,
    merge_rows,
    metric_of_each_user,
)
from promptmm.core.top_k import top_k, top_k_of_scores


def integers(seed, *shape, high=3):
    """Small integers as float32: their dot products are exact and tie often."""
    return torch.randint(-high + 1, high, shape, generator=torch.Generator().manual_seed(seed)).float()


def random_pairs(seed, num_rows, num_columns, shares):
    """A Csr where row r holds each column with probability shares[r]."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(num_rows, num_columns, generator=generator) < torch.as_tensor(shares)[:, None]
    return Csr.from_pairs(*chosen.nonzero().unbind(1), num_rows, num_columns)


def lists(csr):
    return [columns.tolist() for columns in csr.columns.split(csr.degrees.tolist())]


def brute_force(users, items, exclude=None):
    """The whole catalog in order, ties to the lower index, and its scores."""
    scores = users.double().numpy() @ items.double().numpy().T
    if exclude is not None:
        for user, columns in enumerate(lists(exclude)):
            scores[user, columns] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")
    return order, np.take_along_axis(scores, order, 1)


def gather(blocks):
    rows, values, columns = zip(*blocks)
    assert [row for part in rows for row in range(part.start, part.stop)] == list(range(rows[-1].stop))
    return torch.cat(columns).numpy(), torch.cat(values).double().numpy(), len(rows)


@pytest.mark.parametrize("k", [1, 4, 11, 12])
def test_top_k_of_scores(k):
    scores = integers(0, 200, 12)
    scores[::3, 2:9] = -torch.inf
    scores[5] = -torch.inf
    values, columns = top_k_of_scores(scores, k)
    expected = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(columns.numpy(), expected)
    np.testing.assert_array_equal(values.numpy(), np.take_along_axis(scores.numpy(), expected, 1))


@pytest.mark.parametrize("width", [1, 40, 1000, 1009])
@pytest.mark.parametrize("k", [1, 9, 40])
def test_top_k_of_wide_rows(monkeypatch, width, k):
    monkeypatch.setattr(kernel, "WIDE_ROW", 1)
    k = min(k, width)
    for scores in (integers(21, 60, width, high=40), torch.randn(60, width, generator=torch.Generator().manual_seed(22))):
        scores[::3, : width // 2] = -torch.inf
        scores[5] = -torch.inf
        values, columns = top_k_of_scores(scores, k)
        expected = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(columns.numpy(), expected)
        np.testing.assert_array_equal(values.numpy(), np.take_along_axis(scores.numpy(), expected, 1))


@pytest.mark.parametrize("k", [1, 5, 20, 37])
@pytest.mark.parametrize("memory_mib", [0, 1])  # 0: blocks as small as they can be, one user and k items
def test_ties_go_to_the_lower_index(k, memory_mib):
    users, items = integers(1, 30, 3), integers(2, 37, 3)
    exclude = random_pairs(3, 30, 37, torch.linspace(0, 1, 30))
    for masked in (None, exclude):
        order, scores = brute_force(users, items, masked)
        columns, values, num_blocks = gather(top_k(users, items, k, masked, memory_mib))
        np.testing.assert_array_equal(columns, order[:, :k])
        np.testing.assert_array_equal(values, scores[:, :k])
        assert num_blocks == (30 if memory_mib == 0 else 1)


def test_several_blocks_of_users_and_items():
    users, items = integers(4, 150, 4), integers(5, 2500, 4)
    exclude = random_pairs(6, 150, 2500, torch.full((150,), 0.2))
    columns, values, num_blocks = gather(top_k(users, items, 50, exclude, memory_mib=1))
    assert num_blocks == 3
    order, scores = brute_force(users, items, exclude)
    np.testing.assert_array_equal(columns, order[:, :50])
    np.testing.assert_array_equal(values, scores[:, :50])


def test_items_with_the_same_vector_keep_their_order():
    """Also where the scores are rounded: the same two vectors have the same product wherever they stand in a block."""
    generator = torch.Generator().manual_seed(7)
    users, different = torch.randn(40, 64, generator=generator), torch.randn(31, 64, generator=generator)
    items = different[torch.arange(1500) % 31]
    for memory_mib in (0, 1, 256):
        columns, _, _ = gather(top_k(users, items, 20, None, memory_mib))
        np.testing.assert_array_equal(columns, columns[:, :1] + 31 * np.arange(20))


def test_excluded_items_come_last_with_no_score():
    exclude = Csr.from_pairs(torch.tensor([0, 0, 0]), torch.tensor([0, 2, 3]), 1, 5)
    ((_, values, columns),) = top_k(torch.ones(1, 1), torch.arange(5.0)[:, None], 4, exclude)
    assert columns[0, :2].tolist() == [4, 1]
    assert values.tolist() == [[4, 1, -math.inf, -math.inf]]


def test_k_larger_than_the_catalog():
    with pytest.raises(InputError, match=re.escape("k=6 is larger than the catalog of 5 items; ask for at most 5")):
        list(top_k(torch.ones(2, 3), torch.ones(5, 3), 6))


@pytest.fixture
def small_groups(monkeypatch):
    """Lets small catalogs be ranked by the maxima of groups, in many blocks: the sizes from which that pays are set down."""
    sizes = {"FEW_USERS": 1, "LEAST_GROUPS": 2, "USERS_A_BLOCK": 16, "ITEMS_A_BLOCK": 32, "ITEMS_A_CHOICE": 256}
    for name, value in sizes.items():
        monkeypatch.setattr(kernel, name, value)


def refuse(monkeypatch):
    """Fails the test where all scores of some users are sorted out."""

    def refused(*_args):
        raise AssertionError("all scores were sorted out")

    monkeypatch.setattr(kernel, "_top_k_of_rows", refused)


@pytest.mark.parametrize("num_items", [1000, 1003, 2048])  # 1003: three items are in no group
@pytest.mark.parametrize("k", [1, 7, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maxima_of_groups_give_the_list_of_all_scores(small_groups, monkeypatch, num_items, k, dtype):
    generator = torch.Generator().manual_seed(num_items + k)
    users, items = (torch.randn(n, 24, generator=generator, dtype=dtype) for n in (50, num_items))
    items[-2:] *= 3  # the last items are among the best
    exclude = random_pairs(3, 50, num_items, torch.linspace(0, 0.8, 50))
    refuse(monkeypatch)
    for masked in (None, exclude):
        order, scores = brute_force(users, items, masked)
        columns, values, num_blocks = gather(top_k(users, items, k, masked))
        assert num_blocks == 4
        np.testing.assert_array_equal(columns, order[:, :k])
        np.testing.assert_allclose(values, scores[:, :k], rtol=2e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("k", [1, 7, 20])
def test_maxima_of_groups_with_ties_and_with_hardly_an_item_left(small_groups, k):
    users, items = integers(14, 60, 3), integers(15, 1003, 3)
    exclude = random_pairs(16, 60, 1003, torch.linspace(0, 1, 60) ** 0.05)
    for masked in (None, exclude):
        order, scores = brute_force(users, items, masked)
        columns, values, _ = gather(top_k(users, items, k, masked))
        np.testing.assert_array_equal(columns, order[:, :k])
        np.testing.assert_array_equal(values, scores[:, :k])


@pytest.mark.parametrize("allowed", [[], [1002], [5, 6, 7, 8, 9, 10], [*range(0, 1003, 50)]])
def test_maxima_of_groups_where_few_items_are_allowed(small_groups, allowed):
    users, items = (torch.randn(n, 24, generator=torch.Generator().manual_seed(n)) for n in (20, 1003))
    columns = torch.tensor([item for item in range(1003) if item not in allowed])
    exclude = Csr(torch.arange(21) * len(columns), columns.repeat(20), 1003)
    found, values, _ = gather(top_k(users, items, 10, exclude))
    order, _ = brute_force(users, items, exclude)
    np.testing.assert_array_equal(found, order[:, :10])
    assert (values[:, len(allowed) :] == -math.inf).all()


@pytest.mark.parametrize("rest", [0, 1, 2, 3, 7])  # items in no group, which are twins too
@pytest.mark.parametrize("dim", [16, 64, 100])
@pytest.mark.parametrize("k", [1, 20])
def test_twins_far_apart_keep_their_order(small_groups, rest, dim, k):
    """Every vector occurs twice: the two have the same score, though they are scored in other groups and other blocks."""
    generator = torch.Generator().manual_seed(17 + rest)
    different, users = torch.randn(800, dim, generator=generator), torch.randn(128, dim, generator=generator)
    different[:rest] *= 3
    twins = torch.cat([torch.arange(800), torch.arange(rest, 800), torch.arange(rest)])  # the second ones of the longest vectors come last
    columns, _, _ = gather(top_k(users, different[twins], 2 * k))
    np.testing.assert_array_equal(twins.numpy()[columns[:, 1::2]], columns[:, ::2])
    only, _, _ = gather(top_k(users, different[twins], k))
    np.testing.assert_array_equal(only, columns[:, :k])


def test_close_scores_are_sorted_out_exactly(small_groups):
    """Vectors that differ in their last bits: the maxima of groups cannot tell them apart, and nothing is left out for that."""
    generator = torch.Generator().manual_seed(19)
    users, one = torch.rand(64, 64, generator=generator), torch.rand(64, generator=generator)
    items = one * (1 + 1e-7 * torch.randint(0, 3, (1000, 1), generator=generator))
    _, values, _ = gather(top_k(users, items, 20))
    _, scores = brute_force(users, items)
    np.testing.assert_allclose(values, scores[:, :20], rtol=3e-6)


def test_vectors_that_are_no_numbers_are_ranked_as_by_all_scores(small_groups):
    users, items = (torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (20, 1000))
    users[3], users[5] = torch.nan, torch.inf
    by_maxima = gather(top_k(users, items, 5))
    by_scores = gather(kernel._top_k_of_rows(users, items, 5, None, 256))
    np.testing.assert_array_equal(by_maxima[1][[3, 5]], by_scores[1][[3, 5]])
    np.testing.assert_array_equal(by_maxima[0], by_scores[0])


def test_vectors_without_columns_and_lists_without_places(small_groups):
    columns, values, _ = gather(top_k(torch.zeros(50, 0), torch.zeros(1000, 0), 5))
    np.testing.assert_array_equal(columns, np.tile(np.arange(5), (50, 1)))
    assert (values == 0).all()
    assert gather(top_k(torch.ones(50, 4), torch.ones(1000, 4), 0))[0].shape == (50, 0)


def metrics_reference(users, items, held_out, exclude, cutoffs):
    order, _ = brute_force(users, items, exclude)
    values = {}
    for k in cutoffs:
        of_users, covered = [], set()
        for ranked, relevant in zip(order[:, :k].tolist(), lists(held_out)):
            if not relevant:
                continue
            covered |= set(ranked)
            hits = [item in relevant for item in ranked]
            gains = [1 / math.log2(place + 2) for place in range(k)]
            dcg = sum(gain for gain, hit in zip(gains, hits) if hit)
            precisions = [sum(hits[: place + 1]) / (place + 1) for place in range(k) if hits[place]]
            ideal, best = min(k, len(relevant)), sum(hits)
            of_users.append(
                {
                    "recall": sum(hits) / len(relevant),
                    "precision": sum(hits) / k,
                    "ndcg": dcg / sum(gains[:ideal]),
                    "ndcg_retrieved": dcg / sum(gains[:best]) if best else 0.0,
                    "hit_ratio": float(any(hits)),
                    "mrr": 1 / (hits.index(True) + 1) if any(hits) else 0.0,
                    "map": sum(precisions) / ideal,
                }
            )
        values |= {f"{name}@{k}": np.mean([user[name] for user in of_users]) for name in of_users[0]}
        values[f"coverage@{k}"] = len(covered) / len(items)
    return values


@pytest.fixture(params=["ties", "distinct"])
def case(request):
    """Users, items, held-out and masked items; some users have nothing held out, some more than K."""
    num_users, num_items = 43, 60
    if request.param == "ties":
        users, items = integers(8, num_users, 3), integers(9, num_items, 3)
    else:
        users, items = (torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in (num_users, num_items))
    shares = torch.linspace(0, 0.6, num_users)
    shares[::7] = 0
    held_out = random_pairs(10, num_users, num_items, shares)
    masked = random_pairs(11, num_users, num_items, torch.full((num_users,), 0.3))
    known = set(zip(held_out.rows.tolist(), held_out.columns.tolist()))
    pairs = [pair for pair in zip(masked.rows.tolist(), masked.columns.tolist()) if pair not in known]
    rows, columns = torch.tensor(pairs).unbind(1)
    return users, items, held_out, Csr.from_pairs(rows, columns, num_users, num_items)


@pytest.mark.parametrize("memory_mib", [0, 256])
def test_metrics(case, memory_mib):
    cutoffs = [5, 1, 20]
    expected = metrics_reference(*case, cutoffs)
    assert evaluate(*case, cutoffs, memory_mib) == pytest.approx(expected, rel=1e-6)  # torch_geometric sums in float32


@pytest.mark.parametrize("world_size", [2, 3, 50])  # 50 workers: more than users
def test_workers_together_equal_one(case, world_size):
    cutoffs = [3, 20]
    shards = []
    for rank in range(world_size):
        evaluate(*case, cutoffs, 256, rank, world_size, lambda states: shards.append([s.clone() for s in states]))
    sums = [sum(tensors) for tensors in zip(*shards)]

    def all_reduce(states):
        for state, total in zip(states, sums, strict=True):
            state.copy_(total)

    one = evaluate(*case, cutoffs)
    for rank in (0, world_size - 1):
        together = evaluate(*case, cutoffs, 256, rank, world_size, all_reduce)
        assert together == pytest.approx(one, rel=1e-6)


def test_nobody_has_held_out_items():
    empty = random_pairs(0, 4, 9, torch.zeros(4))
    values = evaluate(torch.ones(4, 2), torch.ones(9, 2), empty, empty, [2])
    assert set(values.values()) == {0.0}
    assert len(values) == 8


def test_a_perfect_and_a_useless_ranking():
    held_out = Csr.from_pairs(torch.tensor([0, 1, 1]), torch.tensor([3, 0, 2]), 2, 6)
    nothing = random_pairs(0, 2, 6, torch.zeros(2))
    vectors = torch.zeros(2, 6)
    vectors[held_out.rows, held_out.columns] = 1
    best = evaluate(vectors, torch.eye(6), held_out, nothing, [2])
    for name in ("recall", "ndcg", "ndcg_retrieved", "hit_ratio", "mrr", "map"):
        assert best[f"{name}@2"] == pytest.approx(1)
    assert best["precision@2"] == pytest.approx(0.75)
    worst = evaluate(-vectors, torch.eye(6), held_out, nothing, [2])
    assert all(worst[name] == 0 for name in worst if not name.startswith("coverage"))


def test_masked_items_are_not_covered():
    """A user with fewer than K unmasked items is recommended only those."""
    held_out = Csr.from_pairs(torch.tensor([0]), torch.tensor([5]), 1, 6)
    masked = Csr.from_pairs(torch.zeros(4, dtype=torch.int64), torch.arange(4), 1, 6)
    values = evaluate(torch.ones(1, 2), torch.ones(6, 2), held_out, masked, [4])
    assert values["recall@4"] == 1
    assert values["coverage@4"] == pytest.approx(2 / 6)


def test_merge_rows():
    first = Csr.from_pairs(torch.tensor([0, 0, 2]), torch.tensor([3, 1, 0]), 4, 5)
    second = Csr.from_pairs(torch.tensor([0, 1, 2]), torch.tensor([3, 4, 2]), 4, 5)
    assert lists(merge_rows(first, second)) == [[1, 3], [4], [0, 2], []]


@pytest.mark.parametrize("memory_mib", [0, 256])
def test_places_of_held_out_items(memory_mib):
    users, items, depth = integers(20, 30, 3), integers(21, 37, 3), 9
    train, held_out = random_pairs(22, 30, 37, torch.full((30,), 0.3)), random_pairs(23, 30, 37, torch.linspace(0, 0.3, 30))
    order, scores = brute_force(users, items, train)
    found = iter(held_out_places(users, items, held_out, train, depth, memory_mib).tolist())
    for user, held in enumerate(lists(held_out)):
        for item in held:
            place = order[user].tolist().index(item)
            assert next(found) == (place if place < depth and scores[user, place] > -np.inf else depth)
    assert next(found, None) is None


@pytest.mark.parametrize("metric", ["recall@9", "ndcg@3"])
def test_the_mean_over_users_is_what_an_evaluation_reports(metric):
    users, items = integers(30, 40, 3), integers(31, 37, 3)
    train, held_out = random_pairs(32, 40, 37, torch.full((40,), 0.3)), random_pairs(33, 40, 37, torch.linspace(0, 0.3, 40))
    values = metric_of_each_user(metric, users, items, held_out, train)
    assert values.shape == (int((held_out.degrees > 0).sum()),)
    assert float(values.mean()) == pytest.approx(
        evaluate(users, items, held_out, train, [3, 9])[metric], abs=1e-7
    )  # torch_geometric has float32 sums
