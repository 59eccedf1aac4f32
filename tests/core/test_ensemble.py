"""Weighted sums of teachers against dense computations."""

import numpy as np
import pytest
import torch
from promptmm.core.config import TeacherConfig
from promptmm.core.ensemble import ChoiceSize, Mixture, choose_weights, contributions, sample_users
from promptmm.core.graph import Csr
from promptmm.core.ranking import evaluate
from promptmm.core.standard_scores import moments_of, score_deviation
from promptmm.core.teacher.ensemble import alike

USERS, ITEMS, DIM = 60, 40, 6


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def csr(mask):
    rows, columns = mask.nonzero(as_tuple=True)
    return Csr.from_pairs(rows, columns, *mask.shape)


def mixture_of(taste, held_out, exclude, metric, depth=None):
    return Mixture.gather({name: lambda rows, of=each: of[rows] for name, each in taste.items()}, held_out, exclude, metric, depth)


@pytest.fixture
def catalog():
    """Tastes in two halves; train and validation items are each user's best by their sum, taken in turn."""
    taste = {"one": drawn(USERS, ITEMS, seed=1), "two": drawn(USERS, ITEMS, seed=2), "noise": drawn(USERS, ITEMS, seed=3)}
    best = (taste["one"] + taste["two"]).argsort(1, descending=True)
    train, held_out = torch.zeros(USERS, ITEMS, dtype=torch.bool), torch.zeros(USERS, ITEMS, dtype=torch.bool)
    train.scatter_(1, best[:, 0:8:2], True)
    held_out.scatter_(1, best[:, 1:8:2], True)
    return taste, csr(train), csr(held_out)


def test_scores_in_units_of_their_standard_deviation():
    users, items = 3 * drawn(USERS, DIM), drawn(ITEMS, DIM, seed=1) + 5
    users[3] = 0
    mean, covariance = moments_of(items.split(7), DIM)
    scores = (users.double() @ (items.double() - mean).T).numpy()
    found = score_deviation(users, covariance).numpy()
    np.testing.assert_allclose(found, scores.std(1), rtol=1e-10)
    assert found[3] == 0
    assert np.abs(scores.mean(1)).max() < 1e-10


def test_components_that_help_each_other_share_the_weight_and_noise_has_none(catalog):
    taste, train, held_out = catalog
    mixture = mixture_of(taste, held_out, train, "recall@5")
    weights = choose_weights(mixture)
    assert sum(weights.by_name.values()) == pytest.approx(1)
    assert weights.by_name["noise"] == 0
    assert min(weights.by_name["one"], weights.by_name["two"]) > 0.3
    total = sum(weight * taste[name] for name, weight in weights.by_name.items())
    assert weights.value == pytest.approx(evaluate(total, torch.eye(ITEMS), held_out, train, [5])["recall@5"])
    alone = {name: evaluate(scores, torch.eye(ITEMS), held_out, train, [5])["recall@5"] for name, scores in taste.items()}
    assert weights.value > max(alone.values())
    facts = contributions(mixture, weights.by_name, train.degrees, torch.bincount(train.columns, minlength=ITEMS))
    assert {name: each["alone"] for name, each in facts.items()} == pytest.approx(alone)
    assert facts["one"]["without"] == pytest.approx(alone["two"])
    assert set(facts["noise"]) == {"weight", "alone"}
    gain = np.mean(facts["one"]["gain_by_users"])  # all thirds have as many users
    assert gain == pytest.approx(weights.value - alone["two"])
    assert facts["one"]["gain_by_items"] == pytest.approx([gain] * 3, abs=0.25)


def test_components_that_differ_by_their_seed_weigh_the_same(catalog):
    """As one component, the mean of their scores."""
    taste, train, held_out = catalog
    twin = taste["one"] + 0.5 * drawn(USERS, ITEMS, seed=4)
    apart = choose_weights(mixture_of({**taste, "twin": twin}, held_out, train, "recall@5")).by_name
    found = choose_weights(mixture_of({**taste, "twin": twin}, held_out, train, "recall@5"), [["one", "twin"]])
    assert apart["one"] != apart["twin"]
    assert found.by_name["one"] == found.by_name["twin"] > 0
    assert sum(found.by_name.values()) == pytest.approx(1)
    total = sum(weight * {**taste, "twin": twin}[name] for name, weight in found.by_name.items())
    assert found.value == pytest.approx(evaluate(total, torch.eye(ITEMS), held_out, train, [5])["recall@5"])
    merged = {"two": taste["two"], "noise": taste["noise"], "one": (taste["one"] + twin) / 2}
    one = choose_weights(mixture_of({name: merged[name] for name in taste}, held_out, train, "recall@5")).by_name
    assert one["one"] == pytest.approx(2 * found.by_name["twin"])


@pytest.mark.parametrize(
    ("components", "groups"),
    [
        ({"promptmm": {}, "promptmm-2": {"kind": "promptmm", "seed": 1}, "spectral": {}}, [["promptmm", "promptmm-2"]]),
        ({"a": {"kind": "mf", "dim": 8}, "mf": {"seed": 1}}, []),
        ({"b": {"kind": "mf", "seed": 3}, "ease": {}, "a": {"kind": "mf", "seed": 2}, "mf": {}}, [["b", "a", "mf"]]),
        ({"shown": {"kind": "mf", "temperature": 0.2, "weight": 0, "seed": 1}, "mf": {"temperature": None}}, []),
        ({"given": {"kind": "mf", "temperature": 0.2}, "mf": {"temperature": None, "seed": 1}}, []),
        ({"mf": {}, "taken": {"artifact": "a/teacher"}}, []),
    ],
    ids=["two", "other sizes", "three", "outside the sum", "an open temperature", "artifact"],
)
def test_which_components_differ_by_their_seed_alone(components, groups):
    assert alike(TeacherConfig(kind="ensemble", loss="softmax", components=components)) == groups


def test_the_best_component_stays_alone_where_others_add_nothing(catalog):
    taste, train, held_out = catalog
    scores = {"noise": taste["noise"], "whole": taste["one"] + taste["two"]}
    assert choose_weights(mixture_of(scores, held_out, train, "ndcg@5")).by_name == {"noise": 0, "whole": 1}


def test_lists_of_users_who_may_see_few_items(catalog):
    """Masked items are never hits, also where fewer items are left than the list has places."""
    taste, _, held_out = catalog
    exclude = csr(torch.ones(USERS, ITEMS, dtype=torch.bool).scatter_(1, held_out.columns.view(USERS, 4), False))
    mixture = mixture_of(taste, held_out, exclude, "recall@10")
    lists = mixture.lists({"one": 1.0, "two": 0.0, "noise": 0.0})
    assert (lists >= 0).sum(1).tolist() == [4] * USERS
    assert mixture.values(lists).tolist() == [1.0] * USERS
    assert mixture.found(lists).all()


def test_weights_are_chosen_on_as_many_users_and_items_as_memory_allows(monkeypatch):
    held_out = csr(torch.arange(USERS)[:, None] % 3 == torch.zeros(1, ITEMS))
    every_third = list(range(0, USERS, 3))
    assert sample_users(held_out, 20).tolist() == every_third
    assert sample_users(held_out, 5).tolist() == every_third[::4]
    assert ChoiceSize.of(20, ITEMS, 4, "recall@20") == ChoiceSize(20, ITEMS, 4 * ITEMS * 4 * 20)
    monkeypatch.setattr("promptmm.core.ensemble.CACHE_BYTES", 4 * ITEMS * 4 * 5)
    assert ChoiceSize.of(20, ITEMS, 4, "recall@20") == ChoiceSize(5, ITEMS, 4 * ITEMS * 4 * 5)  # all items are fewer than 200
    monkeypatch.setattr("promptmm.core.ensemble.CACHE_BYTES", 1 << 26)
    assert ChoiceSize.of(2_000, 50_000, 5, "recall@20") == ChoiceSize(2_000, 200, 24 * 1_000 * 2_000)
    assert ChoiceSize.of(200_000, 50_000, 5, "recall@20") == ChoiceSize(2_796, 200, 24 * 1_000 * 2_796)
    assert ChoiceSize.of(2_000, 50_000, 5, "recall@50").depth == 500


@pytest.mark.parametrize("depth", [3, 8, 15])
def test_sums_of_the_components_best_items_rank_as_sums_of_all_scores(catalog, monkeypatch, depth):
    """Wherever the last place is above what the components have at the depth, and for every component alone; with ties and masked items."""
    monkeypatch.setattr("promptmm.core.ensemble.BLOCK_SCORES", 7 * ITEMS)
    taste, train, held_out = catalog
    taste = {name: (2 * each).round() / 2 if name == "two" else each for name, each in taste.items()}
    few = torch.zeros(USERS, ITEMS, dtype=torch.bool)
    few[5, :-4] = True
    few[5, held_out.columns[held_out.pointers[5] : held_out.pointers[6]]] = False
    exclude = csr(torch.zeros(USERS, ITEMS).index_put((train.rows, train.columns), torch.ones(())).bool() | few)
    whole, part = (mixture_of(taste, held_out, exclude, "ndcg@3", d) for d in (None, depth))
    masked = torch.zeros(USERS, ITEMS).index_put((exclude.rows, exclude.columns), torch.tensor(-torch.inf))
    least = {name: (each + masked).topk(depth, 1).values[:, -1] for name, each in taste.items()}
    certain = 0
    for weights in ({"one": 1.0, "two": 0.0, "noise": 0.0}, {"one": 0.0, "two": 1.0, "noise": 0.0}, {"one": 0.5, "two": 0.3, "noise": 0.2}):
        expected, found = whole.lists(weights), part.lists(weights)
        total = sum(weight * taste[name] for name, weight in weights.items())
        bound = sum(weight * least[name] for name, weight in weights.items() if weight)
        sure = total.gather(1, found[:, -1:].clamp(min=0)).squeeze(1) > bound if max(weights.values()) < 1 else torch.ones(USERS).bool()
        sure |= bound == -torch.inf
        certain += int(sure.sum())
        assert torch.equal(found[sure], expected[sure])
        assert torch.equal(part.values(found)[sure], whole.values(expected)[sure])
    assert certain > 2 * USERS
    half = torch.arange(0, USERS, 2)
    assert torch.equal(part.of_users(half).lists({"one": 1.0}), part.lists({"one": 1.0})[half])
    merged = part.merged([["one", "two"]])
    assert torch.equal(merged.lists({"one": 1.0}), part.lists({"one": 0.5, "two": 0.5}))
