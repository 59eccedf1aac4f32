"""The plan agrees with the models it predicts, and refuses with the number and the setting."""

import dataclasses
import re

import pytest
from promptmm.core.config import TeacherConfig
from promptmm.core.errors import InputError
from promptmm.core.storage import write_json
from promptmm.core.student import build_student
from promptmm.core.teacher import IdTables, build_reduction
from promptmm.graph_store.config import SourceConfig
from promptmm.graph_store.dataset import Dataset, open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.sources.formats import load_catalog
from promptmm.jobs.needs import Sizes, reduction_bytes, reduction_floats, teacher_seeds, tower_parameters
from promptmm.jobs.planning import available_memory, choose_engine, describe_plan, engine_of, make_plan
from promptmm.jobs.settings import Settings, load_settings
from promptmm.jobs.stages import record_url

GIB = 2**30


def make_dataset(folder, **settings) -> Dataset:
    config = SourceConfig(synthetic_num_users=60, synthetic_num_items=40, synthetic_interactions_per_user=6.0, **settings)
    write_dataset(str(folder), load_catalog(config), {})
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
    """Weights, gradients, Adam's two moments and the best so far: five floats a parameter."""
    plan = make_plan(settings, dataset, None)
    tables = IdTables(dataset.num_users, dataset.num_items, 8, 0.1, 0)
    bytes_of_tables = 5 * 4 * sum(p.numel() for p in tables.parameters())
    assert plan["roles"]["teacher worker"]["parts"]["ID tables, Adam and best"] == bytes_of_tables
    student = build_student(settings.student, dataset.num_users, dataset.num_items, 0)
    assert plan["roles"]["student worker"]["parts"]["tables, Adam and best"] == 5 * 4 * sum(p.numel() for p in student.parameters())


ROLES = {"teacher worker", "labeler", "student worker", "evaluator (teacher)", "evaluator (student)"}
AROUND = {"driver", "Ray"}


@pytest.mark.parametrize("engine", ["full", "sampled"])
def test_a_plan_adds_up(dataset, engine):
    settings = load_settings(None, ["teacher.dim=8", "student.dim=8", f"cluster.engine={engine}", "cluster.num_workers=2"])
    plan = make_plan(settings, dataset, 64 * GIB)
    assert plan["engine"] == engine
    assert plan["available_bytes"] == 64 * GIB
    servers = {"graph server"} if engine == "full" else {"graph server (train-teacher)", "graph server (distill)"}
    assert set(plan["roles"]) == ROLES | AROUND | servers
    for role in plan["roles"].values():
        assert role["bytes"] == role["base_bytes"] + sum(role["parts"].values()) <= role["at_most_bytes"]
    for host in plan["hosts"].values():
        assert host["bytes"] == sum(plan["roles"][role]["bytes"] * count for role, count in host["processes"].items())
        assert set(host["processes"]) >= AROUND
    assert plan["hosts"]["train-teacher"]["processes"]["teacher worker"] == 2
    text = describe_plan(plan)
    assert all(role in text for role in plan["roles"])
    assert f"engine: {engine}" in text
    for step in plan["steps"].values():
        assert step["seconds_at_least"] == max(step["seconds_by"].values()) > 0


@pytest.mark.parametrize("engine", ["full", "sampled"])
def test_workers_share_features_and_exchange_vectors(dataset, engine):
    words = ["teacher.dim=8", "student.dim=8", f"cluster.engine={engine}", "teacher.train.batch_size=32", "sampling.fan_outs=[2]"]
    one, two = (make_plan(load_settings(None, [*words, f"cluster.num_workers={n}"]), dataset, None) for n in (1, 2))
    for name in ("teacher", "student"):
        assert one["steps"][name]["sent_bytes"] == {}
        assert sum(two["steps"][name]["sent_bytes"].values()) > 0
    assert two["steps"]["teacher"]["exchanged_bytes"] > 0
    assert two["steps"]["teacher"]["multiply_adds"] < one["steps"]["teacher"]["multiply_adds"]


def test_zero_stages_shard_more_and_more(dataset):
    """Weights, gradients, two moments and the best: 20 bytes a parameter; of eight workers, a stage holds less than the one before."""
    found = []
    for stage in (0, 1, 2, 3):
        settings = load_settings(None, ["teacher.hidden=[512]", "cluster.num_workers=8", f"cluster.zero_stage={stage}"])
        found.append(reduction_bytes(settings, Sizes.of(dataset, "stored")))
    dims = [m.dim for m in dataset.modalities.values()]
    assert found[0] == 20 * tower_parameters(settings.teacher, dims)
    assert found[0] > found[1] >= found[2] > found[3]


def test_ways_to_need_less_memory(dataset):
    words = ["teacher.hidden=[512]", "cluster.num_workers=2", "cluster.zero_stage=3", "cluster.engine=sampled", "sampling.fan_outs=[2]"]
    words += ["teacher.train.batch_size=64"]

    def planned(*more):
        plan = make_plan(load_settings(None, [*words, *more]), dataset, None)
        return plan["roles"]["teacher worker"], plan["steps"]["teacher"]

    need, step = planned()
    rounded, _ = planned("teacher.reduction_dtype=bfloat16")
    assert sum(rounded["parts"].values()) < sum(need["parts"].values())
    kept, again = (load_settings(None, [*words, f"cluster.checkpoint_activations={flag}"]) for flag in ("false", "true"))
    assert reduction_floats(again, 3) < reduction_floats(kept, 3)
    settings = load_settings(None, [*words, "cluster.micro_batches=4"])
    assert teacher_seeds(settings).examples == 8
    _, cut = planned("cluster.micro_batches=4")
    assert cut["exchanged_bytes"] > step["exchanged_bytes"]  # micro-batches ask for some rows again
    wide, narrow = (planned(f"graph.features={features}")[0]["mapped_bytes"] for features in ("stored", "int8"))
    assert narrow < wide


@pytest.mark.parametrize("available", [GIB, 100 * GIB])
def test_refusal_names_the_number_and_the_setting(dataset, settings, available):
    huge = large(dataset, 10**6)
    plan = make_plan(settings, huge, None)
    role, need = next((role, need) for role, need in plan["roles"].items() if need["bytes"] > available)
    with pytest.raises(InputError) as caught:
        make_plan(fixed(settings, "full"), huge, available)
    message = str(caught.value)
    largest = max(need["parts"], key=need["parts"].__getitem__)
    assert f"a {role} needs {need['bytes'] / GIB:.1f} GiB and the smallest host has {available / GIB:.1f} GiB" in message
    assert f"{largest} ({need['parts'][largest] / GIB:.1f} GiB)" in message
    names = re.findall(r"[a-z]+(?:\.[a-z_]+)+", message.split("Change ")[1])
    assert names
    for name in names:
        section, field = name.split(".", 1)
        value = getattr(settings, section)
        for part in field.split("."):
            value = getattr(value, part)


def fixed(settings: Settings, engine: str) -> Settings:
    return dataclasses.replace(settings, cluster=dataclasses.replace(settings.cluster, engine=engine))


def test_what_shares_a_host_must_fit_it_together(dataset, settings):
    """Every role alone fits; the stage that needs most decides."""
    plan = make_plan(settings, dataset, None)
    most = max(plan["hosts"].values(), key=lambda host: host["bytes"])["bytes"]
    assert most > max(role["bytes"] for role in plan["roles"].values())
    make_plan(settings, dataset, most)
    with pytest.raises(InputError, match=r"plan: .* needs .* on one host, which has .*; most of it is 1 x .* Change [a-z]+\."):
        make_plan(fixed(settings, "full"), dataset, most - 1)


def test_workers_of_a_cluster_do_not_share_a_host(dataset, monkeypatch):
    settings = load_settings(None, ["cluster.address=10.0.0.1:6379", "cluster.num_workers=4"])
    plan = make_plan(settings, dataset, None)
    assert plan["hosts"]["train-teacher"]["processes"] == {"graph server": 1, "teacher worker": 1}
    assert available_memory(settings) is None
    known = load_settings(None, ["cluster.address=10.0.0.1:6379", "cluster.host_memory=2"])
    assert available_memory(known) == 2 * GIB


def test_a_catalog_without_modalities_has_no_teacher(bare, settings):
    plan = make_plan(settings, bare, 64 * GIB)
    assert set(plan["roles"]) == {"student worker", "evaluator (student)"} | AROUND
    assert plan["label_bytes_an_epoch"] == 0
    assert set(plan["steps"]) == {"student"}
    assert "student worker" in describe_plan(plan)


@pytest.mark.parametrize("kind", ["mf", "lightgcn", "vbpr", "lattice"])
def test_baselines_are_planned_for_the_full_engine(dataset, bare, kind):
    settings = load_settings(None, ["teacher.dim=8", "student.dim=8", f"teacher.kind={kind}"])
    plan = make_plan(settings, large(dataset, 10**3), None)
    assert plan["engine"] == "full"
    assert plan["reason"] == f"teacher.kind={kind} keeps the teacher whole in every worker"
    parts, floats = plan["roles"]["teacher worker"]["parts"], 8 * (dataset.num_users + dataset.num_items)
    if kind == "vbpr":
        floats += 8 * dataset.num_users * len(dataset.modalities)
    assert parts["ID tables, Adam and best"] == 5 * 4 * 10**3 * floats
    assert ("item graphs" in parts) == (kind == "lattice")
    assert choose_engine(settings, large(dataset, 10**6), 64 * GIB).engine == "full"
    names = {"teacher worker", "labeler"}
    assert (names <= set(make_plan(settings, bare, None)["roles"])) == (kind in ("mf", "lightgcn"))
    labels = plan["label_bytes_an_epoch"] / make_plan(load_settings(None, []), large(dataset, 10**3), None)["label_bytes_an_epoch"]
    assert (labels < 1) == (kind in ("mf", "lightgcn"))  # no scores by modality


def test_a_student_alone_needs_no_teacher(dataset):
    plan = make_plan(load_settings(None, ["distill.use_teacher=false"]), dataset, None)
    assert set(plan["roles"]) == {"student worker", "evaluator (student)"} | AROUND
    assert plan["label_bytes_an_epoch"] == 0


def test_rows_that_cost_more_than_raw_ones_are_said(dataset):
    plan = make_plan(load_settings(None, ["teacher.dim=64"]), dataset, None)
    dims = {m: info.dim for m, info in dataset.modalities.items()}
    assert plan["raw_row_ratios"] == {m: dim / 128 for m, dim in dims.items()}
    lines = describe_plan(plan).splitlines()
    for modality, dim in dims.items():
        line = next(line for line in lines if line.startswith(f"{modality}: "))
        assert ("reduced rows cost more than raw rows" in line) == (dim < 128)


# The engine


def test_auto_takes_the_full_engine_where_it_fits(dataset, settings):
    assert settings.cluster.engine == "auto"
    assert choose_engine(settings, dataset, 64 * GIB).engine == "full"
    assert choose_engine(settings, dataset, None).engine == "full"
    huge = large(dataset, 10**6)
    choice = choose_engine(settings, huge, 64 * GIB)
    assert choice.engine == "sampled"
    assert re.search(r"the full engine needs [\d.]+ GiB in [a-z-]+.*, and a host has 64.0 GiB", choice.reason)


@pytest.mark.parametrize("override", ["distill.regime=inline", "distill.rounds=2", "student.kind=mlp"])
def test_what_only_the_full_engine_can_do_decides(dataset, override):
    choice = choose_engine(load_settings(None, [override]), large(dataset, 10**6), GIB)
    assert choice.engine == "full"
    assert override.split("=")[0] in choice.reason
    for other in ("cluster.engine=sampled", "sampling.exclude_seed_edges=true"):
        with pytest.raises(InputError, match="keeps the teacher whole in every worker"):
            load_settings(None, [override, other])


def test_seed_edges_can_be_left_out_of_blocks_only(dataset):
    assert choose_engine(load_settings(None, ["sampling.exclude_seed_edges=true"]), dataset, 64 * GIB).engine == "sampled"
    with pytest.raises(InputError, match=r"exclude_seed_edges=true has no meaning with cluster.engine=full"):
        load_settings(None, ["sampling.exclude_seed_edges=true", "cluster.engine=full"])


def test_a_run_keeps_the_engine_it_was_started_with(dataset, tmp_path):
    """Set, then started with, then planned for these settings, then chosen now."""
    little = load_settings(None, [f"run.dir={tmp_path}", "cluster.host_memory=0.001"])
    plenty = load_settings(None, [f"run.dir={tmp_path}", "cluster.host_memory=64"])
    assert [engine_of(s, dataset, "distill").engine for s in (little, plenty)] == ["sampled", "full"]
    made = make_plan(plenty, dataset, None)
    write_json(f"{tmp_path}/plan.json", {**made, "engine": "sampled", "reason": "written by hand"})
    assert engine_of(plenty, dataset, "train-teacher").reason == "written by hand"
    assert engine_of(plenty, dataset, "plan").engine == "full"
    changed = load_settings(None, [f"run.dir={tmp_path}", "cluster.host_memory=64", "teacher.dim=8"])
    assert engine_of(changed, dataset, "train-teacher").engine == "full"
    write_json(record_url(str(tmp_path), "train-teacher"), {"made_with": {"engine": {"engine": "sampled"}}, "done": False})
    for verb in ("plan", "train-teacher", "distill"):
        assert engine_of(plenty, dataset, verb).reason == "train-teacher was started here with it"
        assert engine_of(plenty, dataset, verb).engine == "sampled"
    write_json(record_url(str(tmp_path), "distill"), {"made_with": {"engine": {"engine": "full"}}, "done": True})
    assert engine_of(little, dataset, "distill").engine == "full"
    assert engine_of(fixed(little, "sampled"), dataset, "distill").engine == "sampled"
