"""Every metric of the table against brute force over lists, by user and as a mean; and metrics of one's own."""

import math

import pytest
import torch
from promptmm.core.errors import InputError
from promptmm.core.graph import Csr
from promptmm.core.kinds import METRICS
from promptmm.core.metrics import Metric, RankingMetrics, metric_of_users, user_metric
from promptmm.core.ranking import evaluate, held_out_places

NUM_USERS, NUM_ITEMS, CUTOFFS = 60, 50, [1, 5, 20]


def gain(places):
    return sum(1 / math.log2(place + 2) for place in places)


def places_of(hits):
    return [place for place, hit in enumerate(hits) if hit]


# A user's hits by place and number of held-out items, to the metric by its definition.
OF_USERS = {
    "recall": lambda hits, count: sum(hits) / count,
    "precision": lambda hits, count: sum(hits) / len(hits),
    "ndcg": lambda hits, count: gain(places_of(hits)) / gain(range(min(len(hits), count))),
    "ndcg_retrieved": lambda hits, count: gain(places_of(hits)) / gain(range(sum(hits))) if any(hits) else 0.0,
    "hit_ratio": lambda hits, count: float(any(hits)),
    "mrr": lambda hits, count: 1 / (1 + places_of(hits)[0]) if any(hits) else 0.0,
    "map": lambda hits, count: sum(sum(hits[: p + 1]) / (p + 1) for p in places_of(hits)) / min(len(hits), count),
}
# All lists with empty places left out, to the metric.
OF_LISTS = {"coverage": lambda lists: len({item for items in lists for item in items}) / NUM_ITEMS}


def random_pairs(seed, num_rows, num_columns, shares):
    """A Csr where row r holds each column with probability shares[r]."""
    chosen = torch.rand(num_rows, num_columns, generator=torch.Generator().manual_seed(seed)) < torch.as_tensor(shares)[:, None]
    return Csr.from_pairs(*chosen.nonzero().unbind(1), num_rows, num_columns)


@pytest.fixture(scope="module")
def ranked():
    """Lists of 20 of the first 40 items, with empty places at the end of some: int64 [users, 20]."""
    lists = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(user))[:20] for user in range(NUM_USERS)])
    lists[3, 4:] = lists[8, 0:] = NUM_ITEMS
    return lists


@pytest.fixture(scope="module")
def held_out():
    """From one held-out item a user to more than the longest list has places."""
    pairs = random_pairs(0, NUM_USERS, NUM_ITEMS, torch.linspace(0, 0.7, NUM_USERS))
    rows, columns = torch.cat([pairs.rows, torch.arange(NUM_USERS)]), torch.cat([pairs.columns, torch.arange(NUM_USERS) % NUM_ITEMS])
    keys = torch.unique(rows * NUM_ITEMS + columns)
    return Csr.from_pairs(keys // NUM_ITEMS, keys % NUM_ITEMS, NUM_USERS, NUM_ITEMS)


def rows_of(csr):
    return [set(columns.tolist()) for columns in csr.columns.split(csr.degrees.tolist())]


def hits_of(ranked, held_out, k):
    return [[item in wanted for item in items] for items, wanted in zip(ranked[:, :k].tolist(), rows_of(held_out))]


def test_the_references_are_of_all_metrics():
    assert {*OF_USERS, *OF_LISTS} == set(METRICS.names)
    for name in METRICS.names:
        metric = METRICS.get(name)
        assert isinstance(metric, Metric)
        assert (metric.of_users is None) == (name in OF_LISTS)


@pytest.mark.parametrize("k", CUTOFFS)
@pytest.mark.parametrize("name", METRICS.names)
def test_means_are_those_of_brute_force(ranked, held_out, name, k):
    metrics = RankingMetrics(CUTOFFS, NUM_ITEMS)
    metrics.update(ranked, held_out)
    if name in OF_LISTS:
        expected = OF_LISTS[name]([[item for item in items if item < NUM_ITEMS] for items in ranked[:, :k].tolist()])
    else:
        of_users = [OF_USERS[name](hits, len(wanted)) for hits, wanted in zip(hits_of(ranked, held_out, k), rows_of(held_out))]
        expected = sum(of_users) / NUM_USERS
    assert 0 < expected < 1
    assert metrics.compute()[f"{name}@{k}"] == pytest.approx(expected, rel=1e-6)  # torch_geometric sums in float32


@pytest.mark.parametrize("k", CUTOFFS)
@pytest.mark.parametrize("name", OF_USERS)
def test_values_of_users_are_those_of_brute_force(ranked, held_out, name, k):
    hits = hits_of(ranked, held_out, k)
    values = user_metric(name)(torch.tensor(hits), held_out.degrees)
    assert values.shape == (NUM_USERS,)
    assert values.tolist() == pytest.approx([OF_USERS[name](of_user, int(n)) for of_user, n in zip(hits, held_out.degrees)], abs=1e-12)


def integers(seed, *shape, high=3):
    """Small integers as float32: their dot products are exact and tie often."""
    return torch.randint(-high + 1, high, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("name", OF_USERS)
def test_means_of_the_users_metrics_are_those_of_the_evaluation(name):
    users, items = integers(24, NUM_USERS, 4), integers(25, NUM_ITEMS, 4)
    train = random_pairs(26, NUM_USERS, NUM_ITEMS, torch.full((NUM_USERS,), 0.2))
    held_out = random_pairs(27, NUM_USERS, NUM_ITEMS, torch.linspace(0, 0.4, NUM_USERS))
    places = held_out_places(users, items, held_out, train, max(CUTOFFS))
    _, rows, degrees = held_out.rows.unique(return_inverse=True, return_counts=True)
    expected = evaluate(users, items, held_out, train, CUTOFFS)
    for k in CUTOFFS:
        values = metric_of_users(name, k, places, rows, degrees)
        assert values.shape == (degrees.numel(),)
        assert values.dtype == torch.float64
        assert float(values.mean()) == pytest.approx(expected[f"{name}@{k}"], abs=1e-6), f"{name}@{k}"


def test_updates_block_by_block_equal_one_update():
    held_out = random_pairs(12, 20, 30, torch.full((20,), 0.4))
    ranked = torch.stack([torch.randperm(30, generator=torch.Generator().manual_seed(n))[:10] for n in range(20)])
    whole, parts = RankingMetrics([3, 10], 30), RankingMetrics([10, 3], 30)
    whole.update(ranked, held_out)
    for rows in torch.arange(20).split(7):
        parts.update(ranked[rows], held_out.select(rows))
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-6)


OWN = """
def share_of_first(hits, num_held_out):
    return hits[:, 0] / num_held_out

NUMBER = 3
"""


@pytest.fixture
def own_metric(tmp_path, monkeypatch):
    (tmp_path / "metrics_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "metrics_of_mine:share_of_first"


def test_a_metric_of_ones_own(ranked, held_out, own_metric):
    metrics = RankingMetrics(CUTOFFS, NUM_ITEMS, [own_metric])
    for rows in torch.arange(NUM_USERS).split(25):
        metrics.update(ranked[rows], held_out.select(rows))
    values = metrics.compute()
    first = [hits[0] / len(wanted) for hits, wanted in zip(hits_of(ranked, held_out, 1), rows_of(held_out))]
    for k in CUTOFFS:
        assert values[f"{own_metric}@{k}"] == pytest.approx(sum(first) / NUM_USERS)
    shipped = RankingMetrics(CUTOFFS, NUM_ITEMS)
    shipped.update(ranked, held_out)
    assert {name: value for name, value in values.items() if not name.startswith(own_metric)} == pytest.approx(shipped.compute())


def test_workers_add_up_a_metric_of_ones_own(ranked, held_out, own_metric):
    parts = [RankingMetrics([5], NUM_ITEMS, [own_metric]) for _ in range(2)]
    for metrics, rows in zip(parts, (torch.arange(20), torch.arange(20, NUM_USERS))):
        metrics.update(ranked[rows], held_out.select(rows))
    for mine, its in zip(parts[0].states(), parts[1].states(), strict=True):
        mine += its
    whole = RankingMetrics([5], NUM_ITEMS, [own_metric])
    whole.update(ranked, held_out)
    assert parts[0].compute() == pytest.approx(whole.compute(), rel=1e-6)


def test_names_without_a_value_for_a_user():
    none = torch.zeros(0, dtype=torch.int64)
    for call in (user_metric, lambda name: metric_of_users(name, 5, none, none, none)):
        with pytest.raises(InputError, match=r"'recal': no such metric; the kinds that ship are recall, ndcg"):
            call("recal")
        with pytest.raises(InputError, match=r"metric 'coverage' is computed from all lists together and has no value for a user"):
            call("coverage")
    with pytest.raises(InputError, match=r"'recal': no such metric"):
        RankingMetrics([5], NUM_ITEMS, ["recal"])


def test_naming_a_metric_that_ships_changes_nothing(ranked, held_out):
    """Whether it is one of users or of all lists together."""
    plain, named = RankingMetrics(CUTOFFS, NUM_ITEMS), RankingMetrics(CUTOFFS, NUM_ITEMS, METRICS.names)
    for metrics in (plain, named):
        metrics.update(ranked, held_out)
    assert named.compute() == plain.compute()
