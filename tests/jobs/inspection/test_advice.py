"""Which settings facts ask for: every rule speaks where it should, is silent elsewhere, and gives settings that are allowed together."""

import dataclasses

import pytest
from promptmm.jobs.inspection.advice import BUSY_SHARE, COLD_SHARE, Advice, advice_for
from promptmm.jobs.inspection.degrees import BusyUsers, Spread
from promptmm.jobs.inspection.facts import (
    CO_OCCURRENCE,
    CO_OCCURRENCE_BALANCED,
    CO_OCCURRENCE_OTHERS,
    CatalogFacts,
    ValidationFacts,
    content,
)
from promptmm.jobs.inspection.modalities import ModalityFacts
from promptmm.jobs.inspection.page import page
from promptmm.jobs.inspection.rankings import Ranking
from promptmm.jobs.inspection.spectrum import Spectrum
from promptmm.jobs.settings import load_settings

BALANCE = ["teacher.user_balance=0.5", "teacher.l2=0.007", "student.user_balance=0.5", "student.l2=0.007"]
COLD, WHITEN = "teacher.modality_layers=0", "teacher.whiten=true"


def facts_with(busy=0.0, counts=0.03, balanced=0.09, cold=0.0, cold_auc=None, effective_dim=None, validation=True) -> CatalogFacts:
    """Facts of a catalog of 1,000 users, where `effective_dim` is that of its one modality (None: without features)."""
    spread = Spread(5.0, (0, 1, 1, 2, 3, 8, 30, 60), 0.4, (0.05,) * 9)
    rankings = {
        CO_OCCURRENCE: Ranking(counts, 0.004, 0.003, 0.6, None),
        CO_OCCURRENCE_BALANCED: Ranking(balanced, 0.004, 0.0, 0.7, None),
        "spectral": Ranking(0.05, 0.004, 0.003, 0.7, None),
    }
    if busy:
        rankings[CO_OCCURRENCE_OTHERS] = Ranking(balanced - 0.01, 0.004, 0.002, 0.6, None)
    modalities = {}
    if effective_dim is not None:
        modalities["visual"] = ModalityFacts(64, 1.0, 0, 0, 0, effective_dim)
        rankings |= {content("visual", whiten): Ranking(0.02, 0.003, 0.004, 0.6, cold_auc) for whiten in (False, True)}
    measured = ValidationFacts(20, 800, 800, 0.01, 2, cold, 0.004, 0.005, rankings, ())
    counted = {"train": 5000, "validation": 900 if validation else 0}
    return CatalogFacts(
        1000, 2000, counted, 0.0025, 0, 0, spread, spread, BusyUsers(10 if busy else 0, busy), Spectrum((1.0, 0.5), 40.0), modalities,
        measured if validation else None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, []),
        ({"busy": 0.7}, BALANCE),
        ({"busy": BUSY_SHARE - 0.01}, []),
        ({"busy": 0.7, "counts": 0.088}, []),  # the busy users speak for the others too
        ({"busy": 0.7, "validation": False}, BALANCE),
        ({"effective_dim": 5.0}, [WHITEN]),
        ({"effective_dim": 60.0}, []),
        ({"effective_dim": 0.0}, []),  # constant columns
        ({"effective_dim": 5.0, "validation": False}, [WHITEN]),
        ({"cold": 0.07}, []),  # no features that could help
        ({"effective_dim": 60.0, "cold": 0.07, "cold_auc": 0.65}, [COLD]),
        ({"effective_dim": 60.0, "cold": 0.07, "cold_auc": 0.51}, []),
        ({"effective_dim": 60.0, "cold": COLD_SHARE / 2, "cold_auc": 0.65}, []),
        ({"busy": 0.7, "effective_dim": 5.0, "cold": 0.07, "cold_auc": 0.65}, [*BALANCE, WHITEN, COLD]),
    ],
)
def test_rules(given, expected):
    advice = advice_for(facts_with(**given))
    assert [one.word for one in advice] == expected
    assert all(one.because.endswith(".") for one in advice)
    settings = load_settings(None, [one.word for one in advice])  # refused where a setting or a combination is not allowed
    for one in advice:
        section, name = one.setting.split(".")
        assert getattr(getattr(settings, section), name) == one.value


def test_advice_changes_something():
    """Advice that repeats a default would say nothing."""
    everything = advice_for(facts_with(busy=0.7, effective_dim=5.0, cold=0.07, cold_auc=0.65))
    defaults = load_settings(None, [])
    for one in everything:
        section, name = one.setting.split(".")
        assert getattr(getattr(defaults, section), name) != one.value, one.setting


def test_advice_is_a_function_of_facts():
    facts = facts_with(busy=0.7, effective_dim=5.0)
    assert advice_for(facts) == advice_for(dataclasses.replace(facts))


def test_the_page_has_every_setting_with_its_reason():
    facts = facts_with(busy=0.7, effective_dim=5.0, cold=0.07, cold_auc=0.65)
    advice = advice_for(facts)
    text = page(facts, advice, {"spectrum": ("inspection/spectrum.png", "Singular values")})
    for one in advice:
        assert f"| `{one.word}` | {one.because} |" in text
    assert " ".join(one.word for one in advice) in text
    assert "![Singular values](inspection/spectrum.png)" in text
    assert "Nothing in the facts" in page(facts, [], {})


@pytest.mark.parametrize(("value", "word"), [(True, "a.b=true"), (0, "a.b=0"), (0.007, "a.b=0.007"), ("users", "a.b=users")])
def test_words(value, word):
    assert Advice("a.b", value, "").word == word
