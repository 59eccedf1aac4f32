"""The plan agrees with the models it predicts, and refuses with the number and the setting."""

import dataclasses
import re

import pytest
from promptmm.core.config import TeacherConfig
from promptmm.core.errors import InputError
from promptmm.core.student import build_student
from promptmm.core.teacher import IdTables, build_reduction
from promptmm.graph_store.config import SourceConfig
from promptmm.graph_store.dataset import Dataset, open_dataset, write_dataset
from promptmm.graph_store.synthetic import synthetic_catalog
from promptmm.jobs.planning import describe_plan, make_plan, needs_of, tower_parameters
from promptmm.jobs.settings import Settings, load_settings

GIB = 2**30


def make_dataset(folder, **settings) -> Dataset:
    config = SourceConfig(synthetic_num_users=60, synthetic_num_items=40, synthetic_interactions_per_user=6.0, **settings)
    write_dataset(str(folder), synthetic_catalog(config), {})
    return open_dataset(str(folder))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("plan") / "dataset")


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("plan") / "dataset", modalities={})


@pytest.fixture
def settings() -> Settings:
    return load_settings(None, ["teacher.dim=8", "student.dim=8"])


def large(dataset: Dataset, factor: int) -> Dataset:
    """The same catalog, many times as large: a plan reads counts only."""
    counts = {split: n * factor for split, n in dataset.manifest["num_interactions"].items()}
    manifest = {**dataset.manifest, "num_interactions": counts}
    return dataclasses.replace(dataset, manifest=manifest, num_users=dataset.num_users * factor, num_items=dataset.num_items * factor)


@pytest.mark.parametrize("hidden", [[], [16], [32, 16]])
@pytest.mark.parametrize("dims", [{"visual": 5}, {"visual": 128, "textual": 96, "acoustic": 64}])
def test_tower_parameters_are_those_of_the_module(dims, hidden):
    config = TeacherConfig(dim=8, hidden=hidden)
    module = build_reduction(dims, config, seed=0)
    assert tower_parameters(config, list(dims.values())) == sum(p.numel() for p in module.parameters())


def test_tables_of_the_plan_are_those_of_the_models(dataset, settings):
    """Weights, gradients and Adam's two moments: four floats a parameter."""
    plan = make_plan(settings, dataset, None)
    tables = IdTables(dataset.num_users, dataset.num_items, 8, 0.1, 0)
    bytes_of_tables = 4 * 4 * sum(p.numel() for p in tables.parameters())
    assert plan["roles"]["teacher worker"]["parts"]["ID tables and Adam"] == bytes_of_tables
    student = build_student(settings.student, dataset.num_users, dataset.num_items, 0)
    assert plan["roles"]["student worker"]["parts"]["tables and Adam"] == 4 * 4 * sum(p.numel() for p in student.parameters())


def test_a_plan_adds_up(dataset, settings):
    plan = make_plan(settings, dataset, 64 * GIB)
    assert plan["engine"] == "full"
    assert plan["available_bytes"] == 64 * GIB
    assert set(plan["roles"]) == {"graph server", "teacher worker", "labeler", "student worker"}
    for role in plan["roles"].values():
        assert role["bytes"] == sum(role["parts"].values()) > 0
    text = describe_plan(plan)
    assert all(role in text for role in plan["roles"])


def test_workers_share_features_and_exchange_vectors(dataset, settings):
    one = make_plan(settings, dataset, None)
    two = make_plan(dataclasses.replace(settings, cluster=dataclasses.replace(settings.cluster, num_workers=2)), dataset, None)
    assert one["bytes_between_workers_a_step"] == 0
    assert two["bytes_between_workers_a_step"] > 0
    part = "features of its shard"
    assert two["roles"]["teacher worker"]["parts"][part] <= one["roles"]["teacher worker"]["parts"][part] / 2


@pytest.mark.parametrize("available", [1, 2**20])
def test_refusal_names_the_number_and_the_setting(dataset, settings, available):
    huge = large(dataset, 10**6)
    need = next(n for n in needs_of(settings, huge) if n.total > available)
    with pytest.raises(InputError) as caught:
        make_plan(settings, huge, available)
    message = str(caught.value)
    largest = max(need.parts, key=need.parts.__getitem__)
    assert f"a {need.role} needs {need.total / GIB:.1f} GiB and the smallest host has {available / GIB:.1f} GiB" in message
    assert f"{largest} ({need.parts[largest] / GIB:.1f} GiB)" in message
    assert f"Change {need.setting}" in message


def test_every_refusal_names_settings_that_exist(dataset, settings):
    for need in needs_of(settings, dataset):
        for name in re.findall(r"[a-z]+(?:\.[a-z_]+)+", need.setting):
            section, field = name.split(".", 1)
            value = getattr(settings, section)
            for part in field.split("."):
                value = getattr(value, part)


def test_what_fits_exactly_is_not_refused(dataset, settings):
    most = max(need.total for need in needs_of(settings, dataset))
    make_plan(settings, dataset, most)
    with pytest.raises(InputError):
        make_plan(settings, dataset, most - 1)


def test_a_catalog_without_modalities_has_no_teacher(bare, settings):
    plan = make_plan(settings, bare, GIB)
    assert set(plan["roles"]) == {"graph server", "student worker"}
    assert plan["label_bytes_an_epoch"] == 0
    assert "embedding targets" not in plan["roles"]["student worker"]["parts"]
    assert "student worker" in describe_plan(plan)


def test_a_student_alone_needs_no_teacher(dataset):
    plan = make_plan(load_settings(None, ["distill.use_teacher=false"]), dataset, None)
    assert set(plan["roles"]) == {"graph server", "student worker"}
    assert plan["label_bytes_an_epoch"] == 0
