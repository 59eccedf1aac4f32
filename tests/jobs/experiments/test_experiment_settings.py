"""An experiment's recipe: what it may say, and messages that name what it may not."""

import re
from importlib import resources

import pytest
import yaml
from promptmm.core.errors import InputError
from promptmm.jobs.experiments.cells import Cell, task_options
from promptmm.jobs.experiments.config import RangeConfig, SearchConfig
from promptmm.jobs.experiments.models import expand, what_decides
from promptmm.jobs.experiments.search import draw_points
from promptmm.jobs.experiments.settings import describe_recipe, load_experiment

SHIPPED = [p.name.removesuffix(".yaml") for p in resources.files("promptmm.jobs.recipes.experiments").iterdir() if p.suffix == ".yaml"]
MODELS = {
    "teacher": {"stage": "teacher"},
    "student": {"stage": "student", "teacher": "teacher"},
    "undistilled": {"stage": "student", "set": {"distill.use_teacher": False}},
}


@pytest.fixture
def load(tmp_path):
    """Loads and expands an experiment of these models, with some keys and overrides more."""

    def build(overrides=(), models=MODELS, **keys):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({"recipe": "demo", "models": models, **keys}, sort_keys=False))
        return expand(load_experiment(str(path), list(overrides)))

    return build


def fails(*parts):
    return pytest.raises(InputError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"seed": [0]}, "mine.yaml: unknown key seed; did you mean seeds?"),
        ({"xyzzy": 1}, "mine.yaml: unknown key xyzzy; the keys are recipe, seeds, metric, models"),
        ({"ablations": {"a": {"off": "student"}}}, "mine.yaml: ablations.a: unknown key off; did you mean of?"),
        ({"sweeps": {"a": {"value": [1]}}}, "mine.yaml: sweeps.a: unknown key value; did you mean values?"),
        ({"search": {"student": {"trails": 3}}}, "mine.yaml: search.student: unknown key trails; did you mean trials?"),
        ({"search": {"student": {"space": {"student.l2": {"lo": 1}}}}}, "search.student.space.student.l2: unknown key lo; did you mean"),
        ({"compare": {"reference": ["student"]}}, "mine.yaml: compare: unknown key reference; did you mean references?"),
        ({"models": {"a": {"stag": "student"}}}, "mine.yaml: models.a: unknown key stag; did you mean stage?"),
        ({"models": ["teacher"]}, "mine.yaml: models: expected keys with values, found ['teacher']"),
        ({"models": {}}, "models is empty"),
        ({"models": {"a": {"stage": "pupil"}}}, "'pupil': expected one of teacher, student"),
        ({"seeds": []}, "seeds=[]: name at least one seed"),
        ({"seeds": [1, 1]}, "seeds=[1, 1]: name at least one seed, from 0, each once"),
        ({"seeds": "all"}, "mine.yaml: seeds='all'"),
        ({"metric": "coverage@20"}, "metric='coverage@20': expected METRIC@K with METRIC one of recall, ndcg"),
        ({"metric": "recall@7"}, "metric='recall@7': expected METRIC@K"),
        ({"ablations": {"a": {"of": "pupil"}}}, "ablations.a: 'pupil' is not one of the models teacher, student, undistilled"),
        ({"ablations": {"student": {"of": "student"}}}, "model 'student': another one has this name"),
        ({"ablations": {"a b": {}, "a-b": {}}}, "the same folder 'a-b'; give it another name"),
        ({"ablations": {"a": {"set": {"distill.pair_wight": 0}}}}, "model 'a': unknown setting distill.pair_wight; did you mean distill."),
        ({"ablations": {"a": {"set": {"distill.pair_weight": -1}}}}, "model 'a': distill.pair_weight=-1: "),
        ({"ablations": {"a": {"set": {"teacher.dim": 8}}}}, "model 'a': teacher.dim is not among what a student may set (student.*"),
        ({"ablations": {"a": {"set": {"source.seed": 8}}}}, "source.seed is not among what a student may set"),
        ({"ablations": {"a": {"student": "student"}}}, "ablations.a: student=student learns from 'teacher'; `of` must be that teacher"),
        ({"sweeps": {"a": {"setting": "distill.temperature"}}}, "sweeps.a: name a setting and at least one of its values"),
        ({"search": {"pupil": {"space": {"student.l2": [1]}}}}, "search.pupil: no model of that name"),
        ({"search": {"student": {}}}, "search.student: name at least one setting in space"),
        ({"search": {"student": {"trials": 0}}}, "search.student.trials=0: "),
        ({"search": {"student": {"space": {"teacher.l2": [1]}}}}, "teacher.l2 is not among what a student may set"),
        (
            {"search": {"teacher": {"trials": 2, "space": {"teacher.l2": [1]}}, "student": {"space": {"student.l2": [1]}}}},
            "have the same budget; set the same trials and number of seeds (teacher: 2 trials at 1 seeds, student: 20 trials at 1 seeds)",
        ),
        ({"compare": {"references": ["pupil"]}}, "compare: no model 'pupil'"),
        ({"models": {"a": {"stage": "student"}}}, "model 'a': a student that is distilled needs its teacher"),
        ({"models": {"a": {"stage": "student", "teacher": "b"}}}, "model 'a': teacher='b' must be a model of stage teacher"),
    ],
)
def test_recipes_that_are_no_experiment(load, keys, message):
    with fails(message):
        load(**keys)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.engine=sampled", "cluster.engine=sampled, cluster.num_workers=1: a cell of an experiment is trained by one worker"),
        ("cluster.num_workers=2", "set cluster.engine=full and cluster.num_workers=1"),
        ("labels.mode=streamed", "set labels.mode=materialised"),
        ("run.seed=3", "run.seed is not for experiments: set experiment.seeds=[...]"),
        ("run.redo=distill", "run.redo is not for experiments: remove the folders of the cells"),
        ("experiment.seed=3", "unknown key seed; did you mean seeds?"),
        ("teacher.dimm=3", "unknown setting teacher.dimm; did you mean teacher.dim?"),
    ],
)
def test_overrides_that_cells_cannot_have(load, override, message):
    with fails(message):
        load([override])


def test_an_experiment_needs_a_recipe():
    with fails("experiment needs its recipe"):
        load_experiment(None, [])
    shipped = "budgets, catalogs, electronics, tiktok, tiktok-teacher"
    with fails(f"recipe 'tiktak': no such file, and no shipped recipe of that name (there are: {shipped})"):
        load_experiment("tiktak", [])


@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in ("budgets", "catalogs")])  # of several catalogs: test_catalogs.py
def test_shipped_experiments_load(name):
    models = expand(load_experiment(name, ["source.path=/data"]))
    assert models.recipe.base.dir.endswith(f"/runs/experiment-{name}")
    assert set(models.recipe.config.compare.references) <= {model.name for model in models.of_role("model")}


def test_the_experiment_on_tiktok_has_every_baseline_and_takes_every_part_of_the_method_away():
    models = expand(load_experiment("tiktok", ["source.path=/data"]))
    assert models.recipe.config.seeds == [0, 1, 2, 3, 4]
    kinds = {models.settings(model.name, 0, {}).teacher.kind for model in models.of_role("model") if model.stage == "teacher"}
    assert kinds == {"promptmm", "mf", "lightgcn", "vbpr", "lattice"}
    changed = {key for model in models.of_role("ablation", "support") for key in model.changes}
    parts = {"pair_weight", "list_weight", "embedding_weight", "disentangle", "reweight"}
    assert changed >= {*(f"distill.{part}" for part in parts), "teacher.prompt"}
    assert {name for name, model in models.by_name.items() if model.role == "model"} - {"undistilled LightGCN"} == set(
        models.recipe.config.search
    )


def test_the_base_recipe_lies_beside_the_experiment(tmp_path):
    (tmp_path / "base.yaml").write_text("student: {dim: 12}")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"recipe": "base.yaml", "models": MODELS}, sort_keys=False))
    assert expand(load_experiment(str(tmp_path / "mine.yaml"), [])).settings("student", 0, {}).student.dim == 12


def test_overrides_of_the_base_and_of_the_experiment(load):
    models = load(["experiment.seeds=[7]", "experiment.metric=ndcg@10", "student.dim=12", "run.dir=/somewhere"])
    assert models.recipe.config.seeds == [7]
    assert models.recipe.metric == "ndcg@10"
    settings = models.settings("student", 7, {})
    assert (settings.student.dim, settings.run.seed, settings.cluster.engine) == (12, 7, "full")
    assert settings.dir == "/somewhere/cells/student/seed-7"


@pytest.mark.parametrize(
    ("overrides", "gpus"),
    [([], 0), (["cluster.use_gpu=true"], 1), (["cluster.use_gpu=true", "cluster.gpus_per_cell=0.25"], 0.25)],
)
def test_cells_may_share_a_gpu(load, overrides, gpus):
    settings = load(overrides).settings("teacher", 0, {})
    cell = Cell("teacher, seed 0", "teacher", settings, "dataset", None, {})
    assert task_options(cell)["num_gpus"] == cell.gpus == gpus


def test_a_model_has_its_own_settings_its_models_and_what_a_search_chose(load):
    models = load(
        ablations={"a": {"of": "student", "set": {"distill.pair_weight": 0}}},
        sweeps={"t": {"of": "student", "setting": "distill.temperature", "values": [0.5, 4]}},
    )
    choices = {"teacher": {"teacher.l2": 0.5}, "student": {"student.l2": 0.25, "distill.pair_weight": 3}}
    student, ablated, swept = (models.settings(name, 0, choices) for name in ("student", "a", "t=4"))
    assert (student.student.l2, student.distill.pair_weight, student.teacher.l2) == (0.25, 3, 0.5)
    assert (ablated.student.l2, ablated.distill.pair_weight) == (0.25, 0)
    assert (swept.distill.temperature, swept.student.l2) == (4, 0.25)
    assert models.settings("undistilled", 0, choices).student.l2 != 0.25
    assert models["t=4"].point == ("t", 4)


def test_components_decide_what_an_ensemble_is_and_nothing_else(load):
    models = {"promptmm": {"stage": "teacher"}, "sum": {"stage": "teacher", "set": {"teacher.kind": "ensemble"}}}
    expanded = [load([f"teacher.components={given}"], models) for given in ("{spectral: {}}", "{spectral: {}, ease: {}}")]
    made = {name: [what_decides("teacher", each.settings(name, 0, {})) for each in expanded] for name in models}
    assert made["promptmm"][0] == made["promptmm"][1]
    assert made["sum"][0] != made["sum"][1]


def test_an_ablated_teacher_with_its_student(load):
    models = load(ablations={"bare": {"of": "teacher", "student": "student", "set": {"teacher.prompt": False, "student.dim": 6}}})
    assert models["bare"].teacher == "bare (teacher)"
    assert (models["bare"].of, models["bare (teacher)"].of) == ("student", "teacher")
    assert models.settings("bare (teacher)", 0, {}).teacher.prompt is False
    settings = models.settings("bare", 0, {})
    assert (settings.teacher.prompt, settings.student.dim) == (False, 6)
    assert models["bare (teacher)"].role == "support"


def test_a_student_without_distillation_reads_no_teacher(load):
    models = load(ablations={"alone": {"of": "student", "set": {"distill.use_teacher": False}}})
    assert models.teacher_of("student", models.settings("student", 0, {})) == "teacher"
    assert models.teacher_of("alone", models.settings("alone", 0, {})) is None


def test_points_of_a_search():
    space = {"a": RangeConfig(1e-4, 1e-1, True), "b": RangeConfig(1, 4), "c": ["x", "y"], "d": RangeConfig(0.5, 1.0)}
    points = draw_points("model", SearchConfig(200, space), 0)
    assert points == draw_points("model", SearchConfig(200, space), 0)
    assert points[:3] == draw_points("model", SearchConfig(3, space), 0)  # more trials go on from fewer
    assert points != draw_points("other", SearchConfig(200, space), 0)
    assert {type(point["b"]) for point in points} == {int}
    assert {point["b"] for point in points} == {1, 2, 3, 4}
    assert {point["c"] for point in points} == {"x", "y"}
    assert all(1e-4 <= point["a"] <= 1e-1 and 0.5 <= point["d"] <= 1 for point in points)
    assert 0.3 < sum(point["a"] < 3e-3 for point in points) / 200 < 0.7


def test_a_space_that_is_smaller_than_its_trials_is_tried_whole():
    points = draw_points("model", SearchConfig(20, {"a": [1, 2], "b": [True, False]}), 0)
    assert points == [{"a": a, "b": b} for a in (1, 2) for b in (True, False)]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"a": []}, "a has no values"),
        ({"a": RangeConfig(2, 1)}, "expected low < high"),
        ({"a": RangeConfig(0, 1, True)}, "more than 0 with log"),
    ],
)
def test_spaces_that_are_none(space, message):
    with fails(message):
        draw_points("model", SearchConfig(3, {**space, "b": RangeConfig(0, 1)}), 0)


def test_the_description_names_every_key():
    text = describe_recipe()
    for key in ("recipe", "seeds", "metric", "models", "ablations", "sweeps", "search", "compare", "trials", "space", "transferability"):
        assert re.search(rf"^ +{key}: \S", text, re.MULTILINE), key
