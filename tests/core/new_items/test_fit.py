"""The fitted map: it finds what features tell, treats missing modalities by sets, and is calibrated beside the student's vectors."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from promptmm.core import graph
from promptmm.core.graph import Csr
from promptmm.core.new_items import calibration, fit, pseudo_cold
from promptmm.core.new_items.calibration import calibrate
from promptmm.core.new_items.encoding import Encoding
from promptmm.core.new_items.pseudo_cold import NUM_FOLDS, make_folds
from promptmm.core.rows import rownorm

from .conftest import DIMS, NUM_ITEMS, make_world


def close_to(predicted: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((rownorm(predicted) * rownorm(wanted)).sum(1).mean())


def test_features_that_tell_an_items_vector_give_it(world, item_map):
    assert item_map.facts["list_length"] == 6  # a quarter of the 27 items of a fold
    assert item_map.facts["recall"] > 0.5  # a random list has 6 / 27
    assert close_to(item_map.vectors(world.features), world.items[world.rows]) > 0.9


def test_the_same_input_gives_the_same_map(world, item_map):
    again = world.fitted()
    assert again.facts == item_map.facts
    assert all(torch.equal(again.weights[modalities], item_map.weights[modalities]) for modalities in item_map.weights)


def test_it_is_the_ridge_of_what_was_chosen(world, item_map):
    """Every set's matrix against a dense solution over the encoded rows."""
    facts, degrees = item_map.facts, torch.bincount(world.train.columns, minlength=NUM_ITEMS)[world.rows]
    encodings = {m: Encoding.of(raw, facts["whiten"]) for m, raw in world.features.items()}
    weights, targets = torch.log1p(degrees.double()), world.items[world.rows].double()
    for modalities in (("visual", "text"), ("visual",), ("text",)):
        scales = torch.cat([torch.full((DIMS[m],), facts["scales"][m], dtype=torch.float64) for m in modalities])
        z = torch.cat([encodings[m].encode(world.features[m]) for m in modalities], 1).double() * scales
        mean = weights @ targets / weights.sum()
        system = z.T @ (weights[:, None] * z) + facts["penalty"] * weights.sum() * torch.eye(z.shape[1])
        solved = scales[:, None] * torch.linalg.solve(system, z.T @ (weights[:, None] * (targets - mean)))
        np.testing.assert_allclose(item_map.weights[modalities], facts["factor"] * solved, rtol=2e-4, atol=2e-5)


def test_a_missing_modality_takes_the_map_of_the_others(world, item_map):
    visual, text = world.features["visual"], world.features["text"]
    both = visual[1] & text[1]
    nothing = torch.zeros_like(text[1])
    left_out = item_map.vectors({"visual": visual})
    as_missing = item_map.vectors({"visual": visual, "text": (torch.full_like(text[0], 7.0), nothing)})
    assert torch.equal(left_out[visual[1]], as_missing[visual[1]])  # and whatever stands in a missing row does not matter
    expected = item_map.bias + item_map.encodings["visual"].encode(visual) @ item_map.weights[("visual",)]
    torch.testing.assert_close(left_out[visual[1]], expected[visual[1]], rtol=1e-4, atol=1e-5)
    whole = item_map.vectors(world.features)
    assert not torch.allclose(whole[both], left_out[both], atol=1e-2)
    torch.testing.assert_close(whole[visual[1] & ~text[1]], left_out[visual[1] & ~text[1]])
    # A matrix for the modality alone predicts better than the joint one with zeros in the other's place.
    own = world.items[world.rows][both]
    zeros = item_map.bias + item_map.encodings["text"].encode(text) @ item_map.weights[("visual", "text")][DIMS["visual"] :]
    assert close_to(item_map.vectors({"text": text})[both], own) > close_to(zeros[both], own)


def test_items_lacking_all_modalities_get_the_bias(world, item_map):
    nothing = {m: (rows[:2], torch.zeros(2, dtype=torch.bool)) for m, (rows, _) in world.features.items()}
    assert torch.equal(item_map.vectors(nothing), item_map.bias.expand(2, -1))


def test_every_set_of_up_to_four_modalities_has_a_matrix():
    names = ["a", "b", "c", "d"]
    patterns = torch.ones(5, 4, dtype=torch.bool)
    sets = fit._sets(names, patterns)
    assert set(sets) == {s for n in range(1, 5) for s in itertools.combinations(names, n)}
    assert len(sets) == 15


def test_of_more_modalities_the_sets_that_items_have():
    names = list("abcdef")
    patterns = torch.tensor([[1, 1, 0, 0, 0, 0]] * 3 + [[0, 0, 1, 1, 1, 0]] * 2 + [[1] * 6]).bool()
    sets = fit._sets(names, patterns)
    assert len(sets) == 1 + 6 + 6 + 2
    assert {("a", "b"), ("c", "d", "e"), tuple(names), ("f",), tuple("bcdef")} <= set(sets)


def test_a_set_without_a_matrix_takes_the_largest_one_within_it():
    dims = {name: 3 for name in "abcdef"}
    found = make_world(dims).fitted()
    assert found._set_for(set("abc")) in found.weights
    assert found._set_for(set("bcdef")) == tuple("bcdef")
    lacking = {m for m in "abcdef"} - {"a", "b", "c"}
    assert set(found._set_for(lacking)) <= lacking


def test_a_wide_modality_is_fitted_on_its_principal_axes(world, monkeypatch):
    whole = world.fitted()
    monkeypatch.setattr(fit, "MOST_AXES", 6)  # as many directions as the items' vectors have, of 9
    narrow = world.fitted()
    assert narrow.weights[("visual",)].shape == (DIMS["visual"], world.items.shape[1])
    assert torch.linalg.matrix_rank(narrow.weights[("visual",)].double(), rtol=1e-5) == 6
    assert close_to(narrow.vectors(world.features), whole.vectors(world.features)) > 0.95


def test_rows_too_wide_to_ship_a_matrix_for_are_not_whitened(world, monkeypatch):
    rows = world.features["visual"][1].nonzero().flatten()
    noise = torch.randn(rows.numel(), 1, generator=torch.Generator().manual_seed(0))
    loud = {"visual": (world.features["visual"][0][rows] + 300 * noise, torch.ones(rows.numel(), dtype=torch.bool))}  # in all columns alike
    assert world.fitted(features=loud, rows=world.rows[rows]).facts["whiten"]
    monkeypatch.setattr(fit, "MOST_WHITENED", 8)
    assert not world.fitted(features=loud, rows=world.rows[rows]).facts["whiten"]


def test_users_may_be_read_a_block_at_a_time(world, monkeypatch):
    """Where train items and vectors are memory-mapped, no more than a block of them is in memory."""
    for module in (calibration, pseudo_cold):
        monkeypatch.setattr(module, "MOST_USERS", 20)
    whole = world.fitted()
    monkeypatch.setattr(graph, "ROWS_A_BLOCK", 7)
    monkeypatch.setattr(calibration, "ROWS_A_BLOCK", 7)
    mapped = Csr(world.train.pointers, world.train.columns.int(), world.train.num_columns)
    sizes, select = [], Csr.select
    monkeypatch.setattr(Csr, "select", lambda self, rows: (self is mapped and sizes.append(rows.numel()), select(self, rows))[1])
    blocked = world.fitted(train=mapped)
    assert {7, 60 % 7} < set(sizes)
    assert max(sizes) == 20
    assert blocked.facts["whiten"] == whole.facts["whiten"]
    torch.testing.assert_close(blocked.vectors(world.features), whole.vectors(world.features))


def test_too_few_items_or_none_with_features_give_no_map(world):
    few = {m: (rows[:19], present[:19]) for m, (rows, present) in world.features.items()}
    arguments = world.users, world.items, world.train
    assert fit.fit_item_map(*arguments, few, world.rows[:19]) is None
    assert fit.fit_item_map(*arguments, {}, world.rows) is None
    lonely = Csr.from_pairs(torch.arange(60), torch.arange(60), 60, NUM_ITEMS)  # a user of one item has no other to be known by
    assert (
        fit.fit_item_map(world.users, world.items, lonely, {m: (r[:60], p[:60]) for m, (r, p) in world.features.items()}, torch.arange(60))
        is None
    )


def test_users_of_a_fold_do_not_know_it(world):
    """Changing the vectors of a fold's items changes nothing about the users who rank them."""
    folds = make_folds(world.items, world.train, world.rows, seed=0)
    assert sorted(torch.cat([fold.places for fold in folds]).tolist()) == list(range(world.rows.numel()))
    assert len(folds) == NUM_FOLDS
    for number, fold in enumerate(folds):
        other = world.items.clone()
        other[world.rows[fold.places]] = 1e3
        again = make_folds(other, world.train, world.rows, seed=0)[number]
        assert torch.equal(again.users, fold.users)
        assert torch.equal(again.is_held, fold.is_held)
        assert fold.is_held.any(1).all()


def test_recall_of_a_fold(world):
    fold = make_folds(world.items, world.train, world.rows, seed=0)[0]
    best = dataclasses.replace(fold, users=torch.eye(3), is_held=torch.eye(3, fold.ranked.numel()).bool())
    own = torch.zeros(fold.places.numel(), 3)
    own[:3] = torch.eye(3)
    assert best.recall(own).tolist() == [1, 1, 1]
    own[3:] = 2.0  # all others before the user's own
    assert best.recall(own).tolist() == [0, 0, 0]


@pytest.mark.parametrize("shift", [0.3, 2.0])
@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_calibrated_items_reach_the_first_places_as_often_as_items_of_few_interactions(shift, scale):
    """Against a count in lists over all items, whatever the scale and level of what the map gave."""
    generator = torch.Generator().manual_seed(1)
    users = torch.randn(300, 4, generator=generator) + shift
    popular = torch.arange(240) / 120  # items of more interactions have longer vectors and more popular ones
    items = torch.randn(240, 4, generator=generator) * (0.5 + popular[:, None]) + 0.2 * popular[:, None]
    predicted = torch.randn(240, 4, generator=generator)
    pairs = torch.randint(0, 300, (600,), generator=generator), torch.randint(0, 240, (600,), generator=generator)
    seen = Csr.from_pairs(*pairs, 300, 240)
    found = calibrate(users, items, seen, torch.arange(240), scale * predicted.double() - 5)
    mapped = found.factor * (scale * predicted.double() - 5) + found.shift
    scores = (users @ items.T).double()
    scores[seen.rows, seen.columns] = -torch.inf
    bars = scores.topk(20, dim=1).values[:, -1:]
    few = float((scores[:, :80] >= bars).double().mean())
    assert found.share_of_places == pytest.approx(few * 240 / 20, rel=1e-6)
    able = users.double() @ found.shift * (1 if found.level > 0 else -1) > 0  # whose scores the shift moves with the mean user's
    assert float((users.double() @ mapped.T >= bars)[able].double().mean()) == pytest.approx(few, abs=2e-4)
    before = users.double() @ (scale * predicted.double() - 5).T
    assert torch.equal((users.double() @ mapped.T).argsort(1), before.argsort(1))  # within the new items no user's ranking changes


def test_users_around_zero_are_not_shifted():
    users = torch.cat([torch.eye(3), -torch.eye(3)])
    nothing = Csr(torch.zeros(7, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 40)
    items, predicted = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.ones(40, 3, dtype=torch.float64)
    found = calibrate(users, items, nothing, torch.arange(40), predicted)
    assert found.level == 0
    assert (found.shift == 0).all()
    assert found.factor > 0
