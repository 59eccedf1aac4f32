"""The recipe of an experiment over several catalogs: what each catalog's experiment is, and messages that name the catalog."""

import re

import pytest
import yaml
from promptmm.core.errors import InputError
from promptmm.core.teacher import teacher_kind
from promptmm.jobs.experiments.models import expand
from promptmm.jobs.experiments.settings import CatalogsRecipe, describe_recipe, load_experiment
from promptmm.jobs.experiments.testing import check_catalogs, check_frozen, freeze, freeze_catalogs

MODELS = {
    "teacher": {"stage": "teacher"},
    "student": {"stage": "student", "teacher": "teacher", "set": {"student.l2": 0.5}},
    "undistilled": {"stage": "student", "set": {"distill.use_teacher": False}},
    "VBPR": {"stage": "teacher", "set": {"teacher.kind": "vbpr"}},
}
CATALOGS = {
    "rich": {"set": {"source.synthetic_num_users": 90}},
    "bare": {"set": {"source.modalities": {}}, "models": {"teacher": {"teacher.kind": "lightgcn"}}, "without": ["VBPR"]},
}


@pytest.fixture
def load(tmp_path):
    """Loads an experiment of these models on these catalogs, with some keys and overrides more."""

    def build(overrides=(), **keys) -> CatalogsRecipe:
        path = tmp_path / "mine.yaml"
        recipe = {"recipe": "demo", "models": MODELS, "catalogs": CATALOGS, "compare": {"references": ["student"]}, **keys}
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return load_experiment(str(path), [f"run.dir={tmp_path}/run", *overrides])

    return build


def fails(*parts):
    return pytest.raises(InputError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


def of_catalog(**keys):
    """Catalogs whose second has these keys."""
    return {"catalogs": {**CATALOGS, "bare": keys}}


def test_every_catalog_has_an_experiment_of_its_own(load, tmp_path):
    recipe = load(["catalogs.rich.source.synthetic_num_items=50", "teacher.dim=12", "catalogs.bare.teacher.dim=16"])
    assert recipe.dir == f"{tmp_path}/run"
    rich, bare = (expand(recipe.recipes[name]) for name in ("rich", "bare"))
    assert [*rich.by_name] == [*MODELS]
    assert [*bare.by_name] == ["teacher", "student", "undistilled"]
    settings = [models.settings("student", 3, {}) for models in (rich, bare)]
    assert [s.dir for s in settings] == [f"{tmp_path}/run/catalogs/{name}/cells/student/seed-3" for name in ("rich", "bare")]
    assert (settings[0].source.synthetic_num_users, settings[0].source.synthetic_num_items) == (90, 50)
    assert settings[0].source.modalities is None
    assert settings[1].source.modalities == {}
    assert [s.teacher.dim for s in settings] == [12, 16]
    assert [s.teacher.kind for s in settings] == ["promptmm", "lightgcn"]
    assert [s.student.l2 for s in settings] == [0.5, 0.5]


def test_the_command_line_is_over_what_the_recipe_sets_for_a_catalog(load):
    users = [
        load(words).recipes["rich"].base.source.synthetic_num_users
        for words in ([], ["catalogs.rich.source.synthetic_num_users=70", "catalogs.bare.source.synthetic_num_users=60"])
    ]
    assert users == [90, 70]


def test_a_catalog_has_a_base_recipe_of_its_own(load, tmp_path):
    (tmp_path / "base.yaml").write_text("student: {dim: 12}")
    recipes = load(catalogs={"a": {"recipe": "base.yaml"}, "b": {}}).recipes
    assert [expand(recipes[name]).settings("undistilled", 0, {}).student.dim for name in ("a", "b")] == [12, 32]


def test_some_of_the_catalogs_of_a_recipe(load):
    assert [*load(["experiment.catalogs=[bare]"]).recipes] == ["bare"]
    with fails("experiment.catalogs: 'bear' is not one of this experiment's; did you mean bare?"):
        load(["experiment.catalogs=[bear]"])
    with fails("experiment.catalogs=[]: name at least one"):
        load(["experiment.catalogs=[]"])


def test_what_is_left_out_takes_its_variants_with_it(load):
    keys = {
        "ablations": {
            "bare VBPR": {"of": "VBPR", "set": {"teacher.dim": 4}},
            "no pair": {"of": "student", "set": {"distill.pair_weight": 0}},
        },
        "sweeps": {"size": {"of": "VBPR", "setting": "teacher.dim", "values": [4, 8]}},
        "search": {name: {"trials": 2, "space": {"teacher.l2": [0.1, 0.2, 0.3]}} for name in ("VBPR", "size=4", "teacher")},
        "compare": {"references": ["VBPR", "student"], "transferability": {"teacher": "VBPR", "student": "student"}},
    }
    recipes = load(**keys).recipes
    everything, some = (expand(recipes[name]) for name in ("rich", "bare"))
    assert [*everything.by_name] == [*MODELS, "bare VBPR", "no pair", "size=4", "size=8"]
    assert [*some.by_name] == ["teacher", "student", "undistilled", "no pair"]
    assert [*some.recipe.config.search] == ["teacher"]
    assert some.recipe.config.compare.references == ["student"]
    assert some.recipe.config.compare.transferability is None
    assert everything.recipe.config.compare.transferability is not None


def test_an_ablated_teacher_is_left_out_with_its_student(load):
    ablations = {"plain": {"of": "teacher", "student": "student", "set": {"teacher.prompt": False}}}
    recipes = load(ablations=ablations, **of_catalog(set={}, without={"plain": "there is no prompt"})).recipes
    assert {"plain", "plain (teacher)"} <= {*expand(recipes["rich"]).by_name}
    assert not {"plain", "plain (teacher)"} & {*expand(recipes["bare"]).by_name}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (of_catalog(sett={}), "mine.yaml: catalogs.bare: unknown key sett; did you mean set?"),
        ({"catalogs": {"bare": None}}, "mine.yaml: catalogs.bare: expected keys with values, found None"),
        ({"catalogs": {"a.b": {}}}, "catalogs: 'a.b' names a folder and settings; use letters"),
        (of_catalog(set={"source.pth": "x"}), "catalogs.bare: unknown setting source.pth; did you mean source.path?"),
        (of_catalog(set={"source.format": "mmrec"}), "catalogs.bare: source.path is not set"),
        (of_catalog(set={"run.dir": "x"}), "catalogs.bare: run.dir is shared by all catalogs"),
        (of_catalog(set={"cluster.threads": 2}), "catalogs.bare: cluster.threads is shared by all catalogs"),
        (of_catalog(recipe="dmo"), "catalogs.bare: recipe 'dmo': no such file"),
        (of_catalog(without=["VPBR"]), "catalogs.bare: without: 'VPBR' is not one of this experiment's; did you mean VBPR?"),
        (of_catalog(models={"pupil": {}}), "catalogs.bare: models: 'pupil' is not one of this experiment's; there are teacher, student"),
        (of_catalog(models={"VBPR": {"teacher.dim": 4}}, without=["VBPR"]), "catalogs.bare: models.VBPR has settings, and"),
        (of_catalog(models={"VBPR": {"teacher.dimm": 4}}), "catalogs.bare: mine, catalog bare: model 'VBPR': unknown setting teacher.dimm"),
        (of_catalog(models={"VBPR": {"student.dim": 4}}), "catalogs.bare: model 'VBPR': student.dim is not among what a teacher may set"),
        (of_catalog(without=["teacher"]), "catalogs.bare: model 'student' learns from 'teacher', which without leaves out"),
        (of_catalog(without=[*MODELS]), "catalogs.bare: without leaves out every model"),
        (of_catalog(without=["student"]), "catalogs.bare: without leaves out all of compare.references=['student']"),
        (of_catalog(set={"evaluation.select_by": "recall@10"}), "the catalogs are compared by one metric"),
    ],
)
def test_catalogs_that_are_none(load, keys, message):
    with fails(message):
        for recipe in load(**keys).recipes.values():
            from promptmm.jobs.experiments.run import _expand

            _expand(recipe)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("catalogs.bear.source.path=x", "'bear' is not one of this experiment's; did you mean bare?"),
        ("catalogs.rich=x", "catalogs.rich=x: expected catalogs.NAME.KEY=value, for instance catalogs.rich.source.path=DIR"),
        ("catalogs.rich.source.path", "expected catalogs.NAME.KEY=value"),
        ("catalogs.rich.source.pth=x", "catalogs.rich: unknown setting source.pth; did you mean source.path?"),
        ("catalogs.rich.run.dir=x", "catalogs.rich: run.dir is shared by all catalogs"),
        ("source.path=x", "source.path is of one catalog, and this experiment has several; set it with the catalog's name, for instance "),
        ("cluster.num_workers=2", "catalogs.rich: cluster.engine="),
    ],
)
def test_words_that_fit_no_catalog(load, word, message):
    with fails(message):
        load([word])


def test_a_recipe_of_one_catalog_has_none_to_set(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump({"recipe": "demo", "models": MODELS}))
    with fails("catalogs.rich.source.path=x: this experiment's recipe has no catalogs"):
        load_experiment(str(path), ["catalogs.rich.source.path=x"])


def test_catalogs_stay_once_they_are_tested(tmp_path):
    folder = str(tmp_path)
    check_catalogs(folder, ["a"])
    assert freeze_catalogs(folder, ["a", "b"]) == []
    check_catalogs(folder, ["b", "a"])
    assert freeze_catalogs(folder, ["a", "b"]) == []
    assert freeze_catalogs(folder, ["a", "b", "c"]) == ["c"]
    assert freeze_catalogs(folder, ["a", "b", "c"]) == ["c"]
    with fails("test figures of this experiment exist", "the catalogs b, c are not in it any more"):
        check_catalogs(folder, ["a"])
    with fails("has the experiment over the catalogs a, b, c; use another run.dir"):
        check_frozen(folder, {"models": {}})
    freeze(f"{folder}/one", {"models": {}})
    with fails("has an experiment on one catalog; use another run.dir"):
        check_catalogs(f"{folder}/one", ["a"])


def test_the_shipped_experiment_has_five_catalogs_and_one_student_from_a_random_start():
    recipe = load_experiment("catalogs", [f"catalogs.{name}.source.path=/data" for name in ("tiktok", "lfm2k", "sports", "movielens")])
    assert [*recipe.recipes] == ["tiktok", "lfm2k", "sports", "movielens", "dense"]
    students, of_features = [], {"promptmm", "content", "spectral + content", "EASE + content"}
    linear, losses = {"spectral", "EASE", "polynomial", "RP3beta", "item kNN", "iALS", "popularity"}, ("pair", "list", "embedding", "score")
    by_modality = {"no prompt", "list alone", "embedding alone", "all losses", *(f"all without {loss}" for loss in losses)}
    for catalog, of_one in recipe.recipes.items():
        models = expand(of_one)
        expected = {"ensemble", "student", "LightGCN", *linear}
        expected |= set() if catalog == "sports" else {"undistilled", *of_features}
        expected |= (
            {"pair alone", "warm start"}
            | (set() if catalog in ("tiktok", "sports") else {"warm start without positive"})
            | (by_modality if catalog in ("tiktok", "lfm2k") else set())
        )
        assert {*models.by_name} == expected
        for loss in losses if catalog == "lfm2k" else ():
            assert loss == "score" or {*models.settings(f"{loss} alone", 0, {}).distill.loss_weights()} == {loss}
            assert {*models.settings(f"all without {loss}", 0, {}).distill.loss_weights()} == {*losses} - {loss}
        taught = models.settings("student", 0, {})
        assert models["student"].teacher == "ensemble"
        assert taught.teacher.kind == "ensemble"
        assert taught.distill.loss_weights() == {"score": 1.0}
        assert not taught.student.warm_start
        assert taught.student.start == "random"
        if catalog != "sports":
            alone = models.settings("undistilled", 0, {})
            assert (alone.student.dim, alone.distill.use_teacher) == (taught.student.dim, False)
        own = {"sports": (256, False), "tiktok": (128, False)}
        assert (taught.student.dim, taught.distill.score_positive) == own.get(catalog, (128, True))
        students.append({key: value for key, value in vars(taught.student).items() if key not in ("train", "dim")})
    assert all(student == students[0] for student in students)


def test_the_shipped_experiment_of_equal_budgets_gives_every_model_as_many_trials():
    """The ensemble alone has none of its own: its components are those that are derived."""
    recipe = load_experiment("budgets", [f"catalogs.{name}.source.path=/data" for name in ("lfm2k", "movielens")])
    for of_one in recipe.recipes.values():
        models = expand(of_one)
        fitted = {name for name in models.by_name if teacher_kind(models.settings(name, 0, {}).teacher).is_fitted}
        assert {models.settings(name, 0, {}).teacher.linear.trials for name in fitted} == {8}
        assert {name: each.trials for name, each in of_one.config.search.items()} == dict.fromkeys(
            models.by_name.keys() - fitted - {"ensemble"}, 8
        )
        parts = models.settings("ensemble", 0, {}).teacher.components.items()
        assert {name: own["linear"]["trials"] for name, own in parts if "linear" in own} == dict.fromkeys(
            ("polynomial", "spectral", "ease"), 8
        )


def test_the_description_names_the_keys_of_a_catalog():
    text = describe_recipe()
    for key in ("catalogs", "without", "recipe", "models", "set"):
        assert re.search(rf"^ +{key}: \S", text, re.MULTILINE), key
