"""The plan agrees with the models it predicts, and refuses with the number and the setting."""

import dataclasses
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from promptmm.core.config import TeacherConfig
from promptmm.core.errors import InputError
from promptmm.core.rows import IdTables
from promptmm.core.students import build_student
from promptmm.core.teacher.reduction import build_reduction
from promptmm.jobs.planning.block_sizes import BlockSizes
from promptmm.jobs.planning.description import describe_plan
from promptmm.jobs.planning.engine import choose_engine
from promptmm.jobs.planning.fitted_needs import fitted_over_shards
from promptmm.jobs.planning.hosts import available_memory
from promptmm.jobs.planning.imported_needs import imported_teacher
from promptmm.jobs.planning.label_needs import ranker
from promptmm.jobs.planning.plan import make_plan
from promptmm.jobs.planning.reduction import reduction_bytes, reduction_floats, tower_parameters
from promptmm.jobs.planning.sizes import Sizes
from promptmm.jobs.planning.student_needs import STUDENT_TABLES, sampled_student
from promptmm.jobs.planning.teacher_needs import ensemble, sampled_teacher, teacher_seeds
from promptmm.jobs.planning.units import GIB
from promptmm.jobs.settings import load_settings

from .conftest import fixed, large


@pytest.mark.parametrize("hidden", [[], [16], [32, 16]])
@pytest.mark.parametrize("dims", [{"visual": 5}, {"visual": 128, "textual": 96, "acoustic": 64}])
def test_tower_parameters_are_those_of_the_module(dims, hidden):
    config = TeacherConfig(dim=8, hidden=hidden)
    module = build_reduction(dims, config, seed=0)
    assert tower_parameters(config, list(dims.values())) == sum(p.numel() for p in module.parameters())


def test_tables_of_the_plan_are_those_of_the_models(dataset, settings):
    """Weights, gradients, Adam's two moments and the best so far: five floats a parameter."""
    plan = make_plan(settings, dataset, None)
    tables = IdTables.seeded(dataset.num_users, dataset.num_items, 8, 0.1, 0)
    bytes_of_tables = 5 * 4 * sum(p.numel() for p in tables.parameters())
    assert plan.roles["teacher worker"].parts["ID tables, Adam and best"] == bytes_of_tables
    assert plan.roles["student worker"].parts["tables, Adam and best"] == bytes_of_tables
    student = build_student(settings.student, 0)
    assert sum(p.numel() for p in student.parameters()) == 0  # its tables are the engine's


UNTAUGHT = {"student worker", "evaluator (student)", "exporter"}
ROLES = {"teacher worker", "labeler", "evaluator (teacher)", *UNTAUGHT}
AROUND = {"driver", "Ray"}
KEPT = {"kept worker"}  # beside a stage that it does not train


@pytest.mark.parametrize("engine", ["full", "sampled"])
def test_a_plan_adds_up(dataset, engine):
    settings = load_settings(None, ["teacher.dim=8", "student.dim=8", f"cluster.engine={engine}", "cluster.num_workers=2"])
    plan = make_plan(settings, dataset, 64 * GIB)
    assert plan.engine == engine
    assert plan.available_bytes == 64 * GIB
    servers = {"graph server"} if engine == "full" else {"graph server (train-teacher)", "graph server (distill)"}
    assert set(plan.roles) == ROLES | AROUND | KEPT | servers
    for role in plan.roles.values():
        assert role.bytes == role.base_bytes + sum(role.parts.values()) <= role.at_most_bytes
    for stage, host in plan.hosts.items():
        assert host.bytes == sum(plan.roles[role].bytes * count for role, count in host.processes.items())
        assert set(host.processes) >= ({"exporter", "Ray"} if stage == "export" else AROUND)
    assert plan.hosts["train-teacher"].processes["teacher worker"] == 2
    kept = {name for name, host in plan.hosts.items() if "kept worker" in host.processes}
    assert kept == {"label", "export"}
    text = describe_plan(plan)
    assert all(role in text for role in plan.roles)
    assert f"engine: {engine}" in text
    for step in plan.steps.values():
        assert step.seconds_at_least == max(step.seconds_by.values()) > 0


@pytest.mark.parametrize("engine", ["full", "sampled"])
def test_workers_share_features_and_exchange_vectors(dataset, engine):
    words = ["teacher.dim=8", "student.dim=8", f"cluster.engine={engine}", "teacher.train.batch_size=32", "sampling.fan_outs=[2]"]
    one, two = (make_plan(load_settings(None, [*words, f"cluster.num_workers={n}"]), dataset, None) for n in (1, 2))
    for name in ("teacher", "student"):
        assert one.steps[name].sent_bytes == {}
        assert sum(two.steps[name].sent_bytes.values()) > 0
    assert two.steps["teacher"].exchanged_bytes > 0
    assert two.steps["teacher"].multiply_adds < one.steps["teacher"].multiply_adds


def test_zero_stages_shard_more_and_more(dataset):
    """Weights, gradients, two moments and the best: 20 bytes a parameter; of eight workers, a stage holds less than the one before."""
    found = []
    for stage in (0, 1, 2, 3):
        settings = load_settings(None, ["teacher.hidden=[512]", "cluster.num_workers=8", f"cluster.zero_stage={stage}"])
        found.append(reduction_bytes(settings, Sizes.of(settings, dataset)))
    dims = [m.dim for m in dataset.modalities.values()]
    assert found[0] == 20 * tower_parameters(settings.teacher, dims)
    assert found[0] > found[1] >= found[2] > found[3]


def test_ways_to_need_less_memory(dataset):
    words = ["teacher.hidden=[512]", "cluster.num_workers=2", "cluster.zero_stage=3", "cluster.engine=sampled", "sampling.fan_outs=[2]"]
    words += ["teacher.train.batch_size=64"]

    def planned(*more):
        plan = make_plan(load_settings(None, [*words, *more]), dataset, None)
        return plan.roles["teacher worker"], plan.steps["teacher"]

    need, step = planned()
    rounded, _ = planned("teacher.reduction_dtype=bfloat16")
    assert sum(rounded.parts.values()) < sum(need.parts.values())
    kept, again = (load_settings(None, [*words, f"cluster.checkpoint_activations={flag}"]) for flag in ("false", "true"))
    assert reduction_floats(again, 3) < reduction_floats(kept, 3)
    settings = load_settings(None, [*words, "cluster.micro_batches=4"])
    assert teacher_seeds(settings, Sizes.of(settings, dataset)).examples == 8
    _, cut = planned("cluster.micro_batches=4")
    assert cut.exchanged_bytes > step.exchanged_bytes  # micro-batches ask for some rows again
    wide, narrow = (planned(f"graph.features={features}")[0].mapped_bytes for features in ("stored", "int8"))
    assert narrow < wide


@pytest.mark.parametrize("available", [GIB, 100 * GIB])
def test_refusal_names_the_number_and_the_setting(dataset, settings, available):
    huge = large(dataset, 10**6)
    plan = make_plan(settings, huge, None)
    role, need = next((role, need) for role, need in plan.roles.items() if need.bytes > available)
    with pytest.raises(InputError) as caught:
        make_plan(fixed(settings, "full"), huge, available)
    message = str(caught.value)
    largest = max(need.parts, key=need.parts.__getitem__)
    assert f"a {role} needs {need.bytes / GIB:.1f} GiB and the smallest host has {available / GIB:.1f} GiB" in message
    assert f"{largest} ({need.parts[largest] / GIB:.1f} GiB)" in message
    names = re.findall(r"[a-z]+(?:\.[a-z_]+)+", message.split("Change ")[1])
    assert names
    for name in names:
        section, field = name.split(".", 1)
        value = getattr(settings, section)
        for part in field.split("."):
            value = getattr(value, part)


def test_what_shares_a_host_must_fit_it_together(dataset, settings):
    """Every role alone fits; the stage that needs most decides."""
    plan = make_plan(settings, dataset, None)
    most = max(plan.hosts.values(), key=lambda host: host.bytes).bytes
    assert most > max(role.bytes for role in plan.roles.values())
    make_plan(settings, dataset, most)
    with pytest.raises(InputError, match=r"plan: .* needs .* on one host, which has .*; most of it is 1 x .* Change [a-z]+\."):
        make_plan(fixed(settings, "full"), dataset, most - 1)


def test_workers_of_a_cluster_do_not_share_a_host(dataset, monkeypatch):
    settings = load_settings(None, ["cluster.address=10.0.0.1:6379", "cluster.num_workers=4"])
    plan = make_plan(settings, dataset, None)
    assert plan.hosts["train-teacher"].processes == {"graph server": 1, "teacher worker": 1}
    assert available_memory(settings) is None
    known = load_settings(None, ["cluster.address=10.0.0.1:6379", "cluster.host_memory=2"])
    assert available_memory(known) == 2 * GIB


def test_a_teacher_that_scores_histories_is_planned_with_its_similarities(dataset):
    """Eight bytes an entry and a row's pointer, in every role that reads them, and the tables that a warm start computes."""
    by_scores = ["distill.list_weight=0", "distill.embedding_weight=0", "student.kind=mf", "student.warm_start=true"]
    words = ["teacher.kind=rp3beta", "teacher.linear.neighbours=20", "cluster.engine=full", "teacher.dim=8", "student.dim=8", *by_scores]
    catalog = large(dataset, 10**4)
    whole, cut = (make_plan(load_settings(None, [*words, f"teacher.linear.rank={rank}"]), catalog, None) for rank in (0, 8))
    size = catalog.num_items * (20 * 8 + 8)
    assert whole.roles["labeler"].parts["item similarities"] == size
    assert whole.roles["evaluator (teacher)"].parts["item similarities"] == size
    assert "users' vectors" not in whole.roles["evaluator (teacher)"].parts
    assert whole.roles["student worker"].moment == "warm start"
    assert whole.roles["student worker"].bytes > cut.roles["student worker"].bytes
    spectral = ["teacher.kind=spectral", "teacher.linear.filter=neighbourhood", "teacher.linear.rank=8", *words[1:]]
    beside = make_plan(load_settings(None, spectral), catalog, None)
    assert beside.roles["labeler"].parts["item similarities"] == size
    fitting = beside.roles["teacher worker"].parts["fitting"]
    vectors_alone = make_plan(load_settings(None, [word for word in spectral if "neighbours" not in word]), catalog, None)
    assert fitting - vectors_alone.roles["teacher worker"].parts["fitting"] > 4 * size
    assert beside.roles["evaluator (teacher)"].parts["users' vectors"] == cut.roles["evaluator (teacher)"].parts["users' vectors"]
    together = ["teacher.kind=ensemble", "teacher.components={one: {kind: rp3beta, linear: {rank: 0, neighbours: 20}}, spectral: {}}"]
    both = make_plan(load_settings(None, [*together, *by_scores, "cluster.engine=full"]), catalog, None)
    assert both.roles["labeler"].parts["item similarities"] == size
    for role in cut.roles.values():
        assert "item similarities" not in role.parts


def test_a_teacher_that_is_fitted_over_shards(dataset):
    """A worker's memory while it fits does not grow with the catalog; the servers' tables do. It has no steps."""
    given = ("rank=16", "user_exponent=1", "item_exponent=0.5", "output_exponent=0.5", "degree=2")
    words = ["teacher.kind=polynomial", *(f"teacher.linear.{each}" for each in given), "cluster.engine=sampled"]
    settings = load_settings(None, [*words, "distill.list_weight=0", "distill.embedding_weight=0"])
    plan, width = make_plan(settings, large(dataset, 100), None), 16 + 32
    floats = dataset.num_users * (width + 16) + dataset.num_items * (3 * width + 16)
    assert plan.roles["graph server (train-teacher)"].parts["tables"] == 100 * floats * 4
    assert set(plan.steps) == {"student"}
    sizes = [dataclasses.replace(Sizes.of(settings, large(dataset, factor)), held_out=0) for factor in (10**5, 10**6)]
    little, much = (fitted_over_shards(settings, each) for each in sizes)
    assert little.moment == "fitting"
    assert little.parts == much.parts
    assert little.total < GIB


@pytest.mark.parametrize("engine", ["full", "sampled"])
def test_a_teacher_that_was_trained_elsewhere(bare, tmp_path, engine):
    """It has no steps and no tables; its columns and modalities are those of the files, and a worker holds no vectors."""
    for side, id in (("users", "user"), ("items", "item")):
        columns = {"final": pa.array([[0.0] * 48]), "modal.text": pa.array([[0.0] * 6])}
        pq.write_table(pa.table({id: ["1"], **columns}), tmp_path / f"{side}.parquet")
    files = [f"teacher.vectors.{side}={tmp_path}/{side}.parquet" for side in ("users", "items")]
    settings = load_settings(None, ["teacher.kind=vectors", *files, f"cluster.engine={engine}", "student.kind=mf"])
    plan = make_plan(settings, bare, None)
    assert set(plan.steps) == {"student"}
    assert plan.roles["teacher worker"].mapped_bytes == (bare.num_users + bare.num_items) * (48 + 6) * 4
    plain = make_plan(load_settings(None, ["teacher.kind=lightgcn", "cluster.engine=full", "student.kind=mf"]), bare, None)
    assert plan.label_bytes_an_epoch > plain.label_bytes_an_epoch  # scores of one modality more
    assert not any("train-teacher" in role for role in plan.roles if role.startswith("graph server"))
    sizes = Sizes.of(settings, large(bare, 10**5))
    need = imported_teacher(settings, dataclasses.replace(sizes, held_out=0))
    assert need.total < sizes.nodes * (48 + 6) * 4
    mixed = f"{{lightgcn: {{}}, mine: {{kind: vectors, vectors: {{users: {tmp_path}/users.parquet, items: {tmp_path}/items.parquet}}}}}}"
    together = load_settings(None, ["teacher.kind=ensemble", f"teacher.components={mixed}", "cluster.engine=full"])
    assert Sizes.of(together, bare).dims == {"text": 6}
    assert set(make_plan(together, bare, None).steps) == {"teacher", "student"}


def test_an_ensemble_of_the_sampled_engine(dataset):
    """Its components are trained one after the other, so that the largest counts; adding up holds no vectors and not the train graph."""
    linear = "{rank: 8, user_exponent: 1, item_exponent: 0.5, output_exponent: 0.5, degree: 2}"
    words = [
        "teacher.kind=ensemble",
        f"teacher.components={{polynomial: {{linear: {linear}}}, promptmm: {{dim: 48}}, small: {{kind: promptmm}}}}",
    ]
    words += ["cluster.engine=sampled", "teacher.dim=16"]
    plan = make_plan(load_settings(None, words), large(dataset, 100), None)
    alone = make_plan(load_settings(None, ["cluster.engine=sampled", "teacher.dim=48"]), large(dataset, 100), None)
    servers = "graph server (train-teacher)"
    assert plan.roles[servers].parts["tables"] == alone.roles[servers].parts["tables"]
    assert plan.steps["teacher"].multiply_adds == alone.steps["teacher"].multiply_adds
    taken = load_settings(None, [*words, "teacher.components={other: {artifact: /elsewhere/teacher}}"])
    assert set(make_plan(taken, large(dataset, 100), None).steps) == {"student"}  # nothing of it is trained
    settings = load_settings(None, [*words, "teacher.components={promptmm: {}}"])
    sizes = [dataclasses.replace(Sizes.of(settings, large(dataset, factor)), held_out=1000) for factor in (10**4, 10**5)]
    little, much = (ensemble(settings, each) for each in sizes)
    assert {name for name in much.parts if much.parts[name] != little.parts[name]} == {"users and items"}


def test_a_catalog_without_modalities_has_no_teacher(bare, settings):
    plan = make_plan(settings, bare, 64 * GIB)
    assert set(plan.roles) == UNTAUGHT | AROUND | KEPT
    assert plan.label_bytes_an_epoch == 0
    assert set(plan.steps) == {"student"}
    assert "student worker" in describe_plan(plan)


@pytest.mark.parametrize("kind", ["mf", "lightgcn", "vbpr", "lattice"])
def test_baselines_are_planned_for_the_full_engine(dataset, bare, kind):
    settings = load_settings(None, ["teacher.dim=8", "student.dim=8", f"teacher.kind={kind}"])
    plan = make_plan(settings, large(dataset, 10**3), None)
    assert plan.engine == "full"
    assert plan.reason == f"teacher.kind={kind} keeps the teacher whole in every worker"
    parts, floats = plan.roles["teacher worker"].parts, 8 * (dataset.num_users + dataset.num_items)
    if kind == "vbpr":
        floats += 8 * dataset.num_users * len(dataset.modalities)
    assert parts["ID tables, Adam and best"] == 5 * 4 * 10**3 * floats
    assert ("item graphs" in parts) == (kind == "lattice")
    assert choose_engine(settings, large(dataset, 10**6), 64 * GIB).engine == "full"
    names = {"teacher worker", "labeler"}
    assert (names <= set(make_plan(settings, bare, None).roles)) == (kind in ("mf", "lightgcn"))
    labels = plan.label_bytes_an_epoch / make_plan(load_settings(None, []), large(dataset, 10**3), None).label_bytes_an_epoch
    assert (labels < 1) == (kind in ("mf", "lightgcn"))  # no scores by modality


def test_candidates_of_the_students_own_are_planned(dataset, settings):
    """The ranking of every user, longer lists, and the full engine, since it ranks from whole tables."""
    own = load_settings(None, ["teacher.dim=8", "student.dim=8", "distill.num_student=5", "distill.student_depth=30"])
    catalog = large(dataset, 10**4)
    with_own, without = (make_plan(each, catalog, None) for each in (own, fixed(settings, "full")))
    assert with_own.engine == "full"
    assert with_own.reason.startswith("distill.num_student=5 ranks all items for every user anew in every epoch")
    parts = with_own.roles["student worker"].parts
    assert parts["student's ranking"] == 8 * 30 * catalog.num_users
    assert parts["teacher's scores of the student's candidates"] > 4 * 8 * 2048  # a batch's users at least
    assert with_own.roles["student worker"].bytes > without.roles["student worker"].bytes
    assert with_own.label_bytes_an_epoch == without.label_bytes_an_epoch  # labels do not have them


def test_rankings_are_planned_where_candidates_are_drawn_from_them(dataset):
    """On disk and mapped; a labeler holds those of a block's users."""
    words, catalog = ["teacher.dim=8", "student.dim=8", "distill.num_top=5", "distill.top_depth=30"], large(dataset, 10**4)
    plan = make_plan(load_settings(None, words), catalog, None)
    assert plan.rankings_bytes == (4 + 4 * (1 + len(catalog.modalities))) * 30 * catalog.num_users  # items, final scores, those by modality
    assert f"{plan.rankings_bytes / 2**20:,.1f} MiB a revision" in describe_plan(plan)
    plain = make_plan(load_settings(None, ["teacher.dim=8", "student.dim=8"]), catalog, None)
    labelers = plan.roles["labeler"], plain.roles["labeler"]
    assert labelers[0].mapped_bytes - labelers[1].mapped_bytes == plan.rankings_bytes
    assert plan.hosts["rank"].processes["ranker"] == 1
    assert {"ranker", "rank"}.isdisjoint({*plain.roles, *plain.hosts})
    deep = make_plan(load_settings(None, [*words, "labels.block_rows=1000000", "distill.top_depth=400"]), catalog, None).roles["labeler"]
    assert deep.parts["a block's rankings"] == 2 * 8 * 400 * catalog.num_users
    assert make_plan(load_settings(None, [*words, "distill.regime=inline"]), catalog, None).rankings_bytes == plain.rankings_bytes == 0


def test_what_comes_after_training_does_not_grow_with_the_catalog(dataset):
    """Ten times the users and items: labelers and evaluators hold a few numbers more for each user, and map the rest."""
    words = ["teacher.dim=8", "student.dim=8", "distill.num_top=5", "cluster.engine=full"]
    for by in ("examples", "users"):
        settings = load_settings(None, [*words, f"labels.by={by}"])
        small, big = (make_plan(settings, large(dataset, factor), None) for factor in (10**5, 10**6))
        for role in ("labeler", "evaluator (teacher)", "evaluator (student)"):
            grown = big.roles[role].bytes - small.roles[role].bytes
            assert grown <= 3 * 8 * 9 * 10**5 * dataset.num_users
            assert big.roles[role].mapped_bytes > 9 * small.roles[role].mapped_bytes


def test_labels_of_every_policy_keep_places_in_the_ranking(dataset):
    """A place is a byte and an item two: both policies that ship draw the last candidates from the ranking."""
    words = ["distill.num_uniform=3", "distill.num_top=4"]
    plans = [make_plan(load_settings(None, [*words, f"distill.candidates={policy}"]), dataset, None) for policy in ("mixed", "popular")]
    row = 4 + (1 + 3) * 2 + 4 * 1 + (1 + len(dataset.modalities)) * 7 * 2
    assert [plan.label_bytes_an_epoch for plan in plans] == [dataset.manifest["num_interactions"]["train"] * row] * 2


def test_labels_by_user_are_planned_once(dataset):
    """Pools and rankings of all users and the scores of all train items, whatever the number of epochs."""
    words = ["teacher.kind=lightgcn", "distill.list_weight=0", "distill.embedding_weight=0", "labels.by=users", "labels.pool=50"]
    plan = make_plan(load_settings(None, [*words, "labels.scores=uint8", "labels.epochs=3"]), dataset, None)
    edges = dataset.manifest["num_interactions"]["train"]
    assert plan.user_label_bytes == dataset.num_users * (50 * (2 + 1) + 4 + 8) + 2 * edges
    assert plan.label_bytes_an_epoch == 0
    assert f"{plan.user_label_bytes / 2**20:,.1f} MiB a revision" in describe_plan(plan)


@pytest.mark.parametrize(("visited", "arrays"), [("interactions", 0), ("users", 1), ("histories", 12)])
def test_orders_by_user_are_planned_in_the_sampled_engine(dataset, visited, arrays):
    settings = load_settings(None, [f"teacher.examples={visited}", f"student.examples={visited}", "cluster.engine=sampled"])
    sizes, blocks = Sizes.of(settings, dataset), BlockSizes(10, 10, 10, 10, 10, 10)
    for moments in (sampled_teacher, sampled_student):
        assert moments(settings, sizes, lambda seeds, fan_outs: blocks)["training"]["order of the users"] == arrays * 8 * dataset.num_users


def test_prompt_tuning_over_shards_holds_no_whole_teacher(dataset):
    """A worker's memory follows its blocks; the tables are the servers'. In the full engine it is the teacher's."""
    words = ["teacher.dim=16", "student.dim=16", "distill.rounds=2", "student.train.batch_size=64", "distill.num_top=2"]
    needs = {}
    for engine in ("full", "sampled"):
        for factor in (10**3, 10**4):
            plan = make_plan(fixed(load_settings(None, [*words, "sampling.fan_outs=[3]"]), engine), large(dataset, factor), None)
            assert plan.hosts["tune-prompt"].processes["prompt tuner"] == 1
            needs[engine, factor] = plan
    role = "prompt tuner"
    assert needs["full", 10**3].roles[role].parts == needs["full", 10**3].roles["teacher worker"].parts
    little, much = (needs["sampled", factor].roles[role] for factor in (10**3, 10**4))
    assert much.bytes < 1.5 * little.bytes
    assert needs["full", 10**4].roles[role].bytes > 3 * needs["full", 10**3].roles[role].bytes
    assert "ID tables, Adam and best" not in much.parts
    servers = needs["sampled", 10**4].roles["graph server (tune-prompt)"].parts["tables"]
    nodes = 10**4 * (dataset.num_users + dataset.num_items)
    tables = STUDENT_TABLES + 1 + 1 + 3 + len(dataset.modalities) + 1  # ID rows, tokens, final vectors and two layers, modalities, prompt
    assert servers == 4 * 16 * nodes * tables


def test_a_student_alone_needs_no_teacher(dataset):
    plan = make_plan(load_settings(None, ["distill.use_teacher=false"]), dataset, None)
    assert set(plan.roles) == UNTAUGHT | AROUND | KEPT
    assert plan.label_bytes_an_epoch == 0


def test_rows_that_cost_more_than_raw_ones_are_said(dataset):
    plan = make_plan(load_settings(None, ["teacher.dim=64"]), dataset, None)
    dims = {m: info.dim for m, info in dataset.modalities.items()}
    assert plan.raw_row_ratios == {m: dim / 128 for m, dim in dims.items()}
    several = ["teacher.kind=ensemble", "teacher.dim=64", "teacher.components={lightgcn: {dim: 256}, promptmm: {dim: 16}, content: {}}"]
    assert make_plan(load_settings(None, several), dataset, None).raw_row_ratios == {m: dim / 32 for m, dim in dims.items()}
    fitted = ["teacher.kind=ensemble", "teacher.components={lightgcn: {}, content: {}}"]
    assert make_plan(load_settings(None, fitted), dataset, None).raw_row_ratios == {}  # no reduced rows
    lines = describe_plan(plan).splitlines()
    for modality, dim in dims.items():
        line = next(line for line in lines if line.startswith(f"{modality}: "))
        assert ("reduced rows cost more than raw rows" in line) == (dim < 128)


@pytest.mark.parametrize("by", ["examples", "users"])
def test_hours_of_labelers_follow_from_the_catalog(dataset, by):
    """Twice the labelers take half the time each; ten times the catalog takes ten times as long to label and a hundred times to rank."""
    words = ["cluster.engine=full", "distill.num_top=5", f"labels.by={by}", "cluster.memory_rate=10", "cluster.compute_rate=10"]
    settings = [load_settings(None, [*words, f"cluster.num_labelers={count}"]) for count in (1, 2)]
    one, two = (make_plan(each, large(dataset, 10**3), None).labelling for each in settings)
    big = make_plan(settings[0], large(dataset, 10**4), None)
    assert set(one) == {"rank", "label"}
    for name, times in (("rank", 100), ("label", 10)):
        assert one[name].seconds_at_least == pytest.approx(2 * two[name].seconds_at_least)
        assert big.labelling[name].seconds_at_least == pytest.approx(times * one[name].seconds_at_least, rel=0.01)
    assert f"at least {big.labelling['rank'].seconds_at_least / 3600:.3g} hours of every labeler" in describe_plan(big)
    assert make_plan(load_settings(None, ["distill.use_teacher=false"]), dataset, None).labelling == {}


def test_a_ranker_of_items_in_shards_holds_the_lists_of_many_users(dataset):
    """Where item vectors take more than a quarter of a host's memory, all lists so far of the users of a pass are in memory."""
    words = ["cluster.engine=full", "distill.num_top=5"]
    wide, narrow = (load_settings(None, [*words, f"cluster.host_memory={memory}"]) for memory in (10_000, 0.05))
    plenty, little = (ranker(settings, Sizes.of(settings, large(dataset, 10**4))).parts["users at a time"] for settings in (wide, narrow))
    assert little > 20 * plenty
