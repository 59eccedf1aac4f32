"""The search: it climbs, keeps its budget, measures nothing twice, and its result is the model of its settings."""

import pytest
import torch
from promptmm.core.kinds import TEACHERS
from promptmm.core.linear.adjacency import Interactions
from promptmm.core.linear.config import LinearConfig
from promptmm.core.linear.content_scores import ContentScores
from promptmm.core.linear.search import Choice, search

from .conftest import HERE, NUM_ITEMS, NUM_USERS

GRID = {"x": Choice(0, tuple(range(-5, 6))), "y": Choice(0, tuple(range(-5, 6)))}


def hill(settings):
    return -((settings["x"] - 3) ** 2) - (settings["y"] + 2) ** 2 - settings["z"]


def test_it_finds_the_top_of_a_hill():
    measured = []

    def measure(settings):
        measured.append(tuple(settings.values()))
        return hill(settings)

    found = search(GRID, {"z": 1}, measure, 100)
    assert found.settings == {"x": 3, "y": -2, "z": 1}
    assert found.value == -1
    assert found.trials == len(measured) == len({*measured})


@pytest.mark.parametrize("trials", [1, 2, 5])
def test_it_keeps_its_budget(trials):
    found = search(GRID, {"z": 0}, hill, trials)
    assert found.trials == trials
    assert found.value == hill(found.settings)


def test_settings_without_a_meaning_are_measured_once():
    def read(settings):
        return {name: value for name, value in settings.items() if name != "y" or settings["x"] > 0}

    found = search({"x": Choice(0, (0, 1)), "y": Choice(0, (0, 1, 2))}, {}, lambda settings: -settings["x"], 100, read)
    assert found.settings == {"x": 0}
    assert found.trials == 2


@pytest.mark.parametrize("kind", HERE)
def test_what_was_chosen_is_the_best_tried_and_fits_again(inputs, kind):
    """Given in place of chosen, the settings give the same vectors bit for bit."""
    generator = torch.Generator().manual_seed(0)
    liked = torch.rand(NUM_USERS, NUM_ITEMS, generator=generator)
    values = []

    def score(users, items, histories):
        values.append(float((users @ items.T * liked).mean()))
        return values[-1]

    found = TEACHERS.get(kind).fit(inputs, LinearConfig(trials=6), score)
    assert 1 < found.trials == len(values) <= 6
    assert found.value == max(values)
    assert found.chosen
    limits = {"trials": 6}
    again = TEACHERS.get(kind).fit(inputs, LinearConfig(**found.settings, **limits))
    assert torch.equal(again.users, found.users)
    assert torch.equal(again.items, found.items)
    assert again.settings == found.settings


def test_the_weight_of_added_content_is_chosen_with_the_other_settings(inputs, monkeypatch):
    """It costs no fit of the kind's own; the weight that is chosen fits the same vectors again, and 0 leaves the rest out."""
    kind, fits = TEACHERS.get("ease"), []
    monkeypatch.setattr(kind, "vectors", lambda self, settings, real=kind.vectors: fits.append(settings) or real(self, settings))
    given = {"rank": 6, "ridge": 0.3, "dropout": 0.25, "user_exponent": 0.5}
    likes = ContentScores(Interactions(inputs.graph), inputs.features, LinearConfig(modality_weights={"text": 1.0}))
    liked = torch.mm(*(x if n == 0 else x.T for n, x in enumerate(likes.vectors({"preparation": "standardised", **likes.given()}))))
    for sign in (1, -1):  # a metric that likes content, and one that does not
        fits.clear()
        found = kind.fit(
            inputs, LinearConfig(**given, content_weight=None), lambda users, items, _, s=sign: s * float((users @ items.T * liked).sum())
        )
        assert set(found.chosen) == {"content_weight", "preparation", "modality_weights.text", "modality_weights.sound"}
        assert (found.settings["content_weight"] > 0.2) == (sign == 1)
        assert len(fits) == 2 < found.trials  # one for all trials, and one for the result
        again = kind.fit(inputs, LinearConfig(**found.settings))
        assert torch.equal(again.users, found.users)
        assert torch.equal(again.items, found.items)
        assert found.settings == {**again.settings, "content_weight": found.settings["content_weight"]}


def test_given_settings_stay(inputs):
    found = TEACHERS.get("spectral").fit(inputs, LinearConfig(rank=5, item_exponent=0.3), lambda users, items, _: float(users.sum()))
    assert found.settings["rank"] == 5
    assert found.settings["item_exponent"] == 0.3
    assert "rank" not in found.chosen
    assert found.users.shape[1] == 5
