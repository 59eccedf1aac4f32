"""Settings out of bounds or at odds with each other: the message names the setting and what to do."""

import dataclasses
import json
import math
import re

import pytest
from promptmm.core.config import (
    DistillationConfig,
    EvaluationConfig,
    OptimizerConfig,
    StudentConfig,
    TeacherConfig,
    as_dict,
)
from promptmm.core.errors import InputError
from promptmm.core.objectives import candidate_policy
from promptmm.core.settings import check_bounds, setting

SECTIONS = [
    (OptimizerConfig, "train"),
    (TeacherConfig, "teacher"),
    (StudentConfig, "student"),
    (DistillationConfig, "distill"),
    (EvaluationConfig, "evaluation"),
]


def outside():
    """A value just outside every declared bound."""
    for cls, section in SECTIONS:
        for field in dataclasses.fields(cls):
            bounds = field.metadata
            for sign, step, words in (
                ("ge", -1, "at least"),
                ("gt", 0, "more than"),
                ("le", 1, "at most"),
                ("lt", 0, "less than"),
            ):
                if bounds and bounds[sign] is not None:
                    value = bounds[sign] + step
                    message = f"{section}.{field.name}={value}: expected {words} {bounds[sign]}"
                    yield pytest.param(cls, field.name, value, message, id=f"{section}.{field.name}-{sign}")


@pytest.mark.parametrize(("cls", "name", "value", "message"), list(outside()))
def test_bounds(cls, name, value, message):
    with pytest.raises(InputError, match=re.escape(message)):
        cls(**{name: value})


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (TeacherConfig, {"dropout": math.nan}, "teacher.dropout=nan: expected at least 0"),
        (TeacherConfig, {"hidden": [64, 0]}, "teacher.hidden=[64, 0]: every hidden size must be at least 1"),
        (
            StudentConfig,
            {"kind": "gat"},
            "student.kind='gat': no such student; the kinds that ship are lightgcn, mf, gcn, mlp, and your own is",
        ),
        (StudentConfig, {"kind": "mlp", "layers": 0}, "student.layers=0: the mlp student needs at least one layer; set"),
        (DistillationConfig, {"regime": "online"}, "distill.regime='online': expected one of rounds, inline"),
        (DistillationConfig, {"num_top": 11, "top_depth": 10}, "distill.num_top=11 is more than distill.top_depth=10"),
        (DistillationConfig, {"regime": "inline", "rounds": 3}, "distill.rounds=3 has no meaning with distill.regime=inline"),
        (DistillationConfig, {"regime": "inline", "use_teacher": False}, "distill.regime=inline needs distill.use_teacher=true"),
        (EvaluationConfig, {"cutoffs": []}, "evaluation.cutoffs=[]: name at least one list length"),
        (EvaluationConfig, {"cutoffs": [20, 0]}, "evaluation.cutoffs=[20, 0]: name at least one list length, each at least 1"),
        (EvaluationConfig, {"select_by": "recall@30"}, "evaluation.select_by='recall@30': expected METRIC@K"),
        (EvaluationConfig, {"select_by": "recal@20"}, "evaluation.select_by='recal@20': expected METRIC@K with METRIC one of recall, ndcg"),
        (EvaluationConfig, {"select_by": "recall"}, "evaluation.select_by='recall': expected METRIC@K"),
        (EvaluationConfig, {"cutoffs": [5]}, "evaluation.select_by='recall@20': expected METRIC@K"),
    ],
)
def test_settings_at_odds(cls, settings, message):
    with pytest.raises(InputError, match=re.escape(message)):
        cls(**settings)


def test_a_cutoff_larger_than_the_catalog():
    config = EvaluationConfig()
    config.check_catalog(50)
    message = "evaluation.cutoffs=[10, 20, 50]: 50 is larger than the catalog of 49 items"
    with pytest.raises(InputError, match=re.escape(message)):
        config.check_catalog(49)


def test_values_on_the_bounds_are_allowed():
    TeacherConfig(layers=0, dropout=0.0, fusion_weight=0, l2=0)
    StudentConfig(kind="mf", layers=0)
    OptimizerConfig(lr_decay=1.0, epochs=1)
    DistillationConfig(embedding_power=1, num_top=10, top_depth=10)
    assert candidate_policy(DistillationConfig(num_uniform=7, num_top=3)).num_candidates == 10
    EvaluationConfig(cutoffs=[3], select_by="ndcg_retrieved@3")


@pytest.mark.parametrize(("cls", "section"), SECTIONS)
def test_every_setting_has_a_line_of_help_and_a_plain_default(cls, section):
    for field in dataclasses.fields(cls):
        if not dataclasses.is_dataclass(field.default):
            assert field.metadata["help"], f"{section}.{field.name}"
    assert json.loads(json.dumps(as_dict(cls()))) == as_dict(cls())


def test_settings_are_frozen_and_defaults_are_not_shared():
    config = TeacherConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dim = 3
    config.hidden.append(5)
    assert TeacherConfig().hidden == []


def test_a_setting_that_is_not_set_has_no_bounds():
    @dataclasses.dataclass(frozen=True)
    class Optional:
        limit: int | None = setting(None, "a limit", ge=1)

    check_bounds(Optional(), "section")
    check_bounds(Optional(1), "section")
    with pytest.raises(InputError, match=r"section\.limit=0: expected at least 1"):
        check_bounds(Optional(0), "section")
