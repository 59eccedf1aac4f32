"""Settings of the command line: recipes, overrides, and messages that say which setting to change."""

import dataclasses
import re
from importlib import resources
from pathlib import Path

import pytest
import yaml
from promptmm.core.config import as_dict
from promptmm.core.errors import InputError
from promptmm.jobs.settings import Settings, describe, load_settings, walk
from promptmm.jobs.verbs import VERBS

SHIPPED = sorted(p.name.removesuffix(".yaml") for p in resources.files("promptmm.jobs.recipes").iterdir() if p.name.endswith(".yaml"))


def fails(*parts):
    """Expects an InputError whose message has all the parts in this order."""
    return pytest.raises(InputError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.dimm=8", "unknown setting teacher.dimm; did you mean teacher.dim?"),
        ("teacher.train.epoch=8", "unknown setting teacher.train.epoch; did you mean teacher.train.epochs?"),
        ("techer.train.epochs=8", "unknown setting techer.train.epochs; did you mean teacher.train.epochs?"),
        ("run_dir=x", "unknown setting run_dir; did you mean run.dir?"),
        ("num_workers=2", "unknown setting num_workers; did you mean cluster.num_workers?"),
        ("source.modalities.visual=x.npy", "unknown setting source.modalities.visual; did you mean source.modalities?"),
        ("xyzzy=1", "unknown setting xyzzy; `promptmm pipeline --help` lists them"),
        ("teacher=8", "teacher is a section; set one of its settings, such as teacher.dim=..."),
        ("student.train=8", "student.train is a section; set one of its settings, such as student.train.epochs=..."),
        ("pipeline", "'pipeline': expected key=value, for instance teacher.train.epochs=20"),
        ("teacher.hidden=[8", "the value of 'teacher.hidden=[8': not valid YAML"),
    ],
)
def test_overrides_that_name_no_setting(override, message):
    with fails(message):
        load_settings("demo", [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teacher: {dimm: 8}", "mine.yaml: unknown setting teacher.dimm; did you mean teacher.dim?"),
        ("teacher: {trian: {epochs: 8}}", "mine.yaml: unknown setting teacher.trian; did you mean teacher.train?"),
        ("techer: {dim: 8}", "mine.yaml: unknown setting techer; did you mean teacher?"),
        ("teacher.dim: 8", "mine.yaml: unknown setting teacher.dim"),
        ("1: 2", "mine.yaml: unknown setting 1"),
        ("teacher: 8", "mine.yaml: teacher is a section; set one of its settings, such as teacher.dim"),
        ("teacher: {train: 8}", "mine.yaml: teacher.train is a section; set one of its settings, such as teacher.train.epochs"),
        ("- teacher", "mine.yaml: expected sections with settings, found list"),
        ("teacher: [", "mine.yaml: not valid YAML"),
    ],
)
def test_recipes_that_are_not_settings(recipe, text, message):
    with fails(message):
        load_settings(recipe(text), [])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.dim=wide", "teacher.dim='wide': "),
        ("teacher.dim=null", "teacher.dim=None: "),
        ("cluster.num_workers=1.5", "cluster.num_workers=1.5: "),
        ("cluster.use_gpu=maybe", "cluster.use_gpu='maybe': "),
        ("student.train.learning_rate=[1]", "student.train.learning_rate=[1]: "),
        ("teacher.hidden=64", "teacher.hidden=64: "),
        ("teacher.hidden=[64, x]", "teacher.hidden.1='x': "),
        ("source.modalities=[visual]", "source.modalities=['visual']: "),
        ("source.modalities={visual: 3}", "source.modalities.visual=3: "),
        ("run.dir=12", "run.dir=12: "),
        ("recommend.users=u1", "recommend.users='u1': "),
    ],
)
def test_a_wrong_type_names_setting_and_value(override, message):
    with fails(message):
        load_settings(None, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.train.epochs=-1", "teacher.train.epochs=-1: "),
        ("student.train.lr_decay=1.5", "student.train.lr_decay=1.5: "),
        ("recommend.k=0", "recommend.k=0: "),
        ("run.seed=-1", "run.seed=-1: "),
        ("cluster.zero_stage=4", "cluster.zero_stage=4: "),
        ("run.redo=everything", "run.redo='everything': expected one of prepare, partition"),
        ("labels.mode=both", "labels.mode='both': expected one of materialised, streamed"),
    ],
)
def test_out_of_bounds(override, message):
    with fails(message):
        load_settings(None, [override])


def test_every_wrong_setting_is_named():
    with fails("teacher.dim=0: ", "student.train.patience=0: "):
        load_settings(None, ["student.train.patience=0", "teacher.dim=0"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.start=spectral", "student.warm_start=true"], "student.start=spectral has no meaning for a student that starts from the"),
        (["student.start=spectral", "student.kind=mlp"], "student.start=spectral has no meaning for a student that starts from the"),
        (["teacher.start=svd"], "teacher.start"),
        (["teacher.start_user_exponent=0.7"], "teacher.start_user_exponent=0.7 has no meaning with teacher.start=random; leave it out"),
        (["student.start_item_exponent=0"], "student.start_item_exponent=0.0 has no meaning with student.start=random; leave it out"),
        (["student.examples=users", "student.user_balance=0.5"], "student.user_balance=0.5 has no meaning with student.examples=users"),
        (["teacher.examples=users", "teacher.user_balance=1"], "teacher.user_balance=1.0 has no meaning with teacher.examples=users"),
        (["student.examples=users", "distill.user_balance=1"], "distill.user_balance=1.0 has no meaning with student.examples=users"),
        (
            ["student.bpr_weight=0", "distill.use_teacher=false"],
            "student.bpr_weight=0 and distill.use_teacher=false leave nothing",
        ),
        (["distill.regime=inline", "distill.rounds=2"], "distill.rounds=2 has no meaning with distill.regime=inline; set rounds=1"),
        (["distill.regime=inline", "distill.use_teacher=false"], "distill.regime=inline needs distill.use_teacher=true"),
        (["distill.num_top=9", "distill.top_depth=5"], "distill.num_top=9 is more than distill.top_depth=5"),
        (["distill.num_student=9", "distill.student_depth=5"], "distill.num_student=9 is more than distill.student_depth=5"),
        (["distill.num_student=2", "distill.use_teacher=false"], "distill.num_student=2 are candidates for a teacher to score"),
        (["evaluation.cutoffs=[10]"], "evaluation.select_by='recall@20': expected METRIC@K"),
        (["source.format=mmrec"], "source.path is not set: source.format=mmrec needs the folder of the raw catalog"),
        (["student.kind=mlp", "student.layers=0"], "student.layers=0: the mlp student needs at least one layer"),
        (["cluster.offload_optimizer=true"], "cluster.offload_optimizer=true needs ZeRO's sharded optimizer; set cluster.zero_stage=1"),
        (["cluster.offload_parameters=true", "cluster.zero_stage=2"], "cluster.zero_stage=2 keeps them whole"),
        (["cluster.gpus_per_cell=0.5"], "cluster.gpus_per_cell=0.5 needs cells that compute on GPUs; set cluster.use_gpu=true"),
        (["cluster.engine=full", "cluster.micro_batches=2"], "cluster.micro_batches=2 has no meaning with cluster.engine=full"),
    ],
)
def test_settings_at_odds_with_each_other(overrides, message):
    with fails(message):
        load_settings(None, overrides)


def test_overrides_are_yaml():
    settings = load_settings(
        "tiktok",
        [
            "source.path=/data/tiktok",
            "source.modalities={visual: image_feat.npy, acoustic: audio_feat.npy}",
            "teacher.hidden=[128, 64]",
            "teacher.prompt=no",
            "teacher.l2=1e-5",
            "run.seed=7",
            "cluster.threads=null",
            "recommend.users=[u1, 17]",
        ],
    )
    assert settings.source.modalities == {"visual": "image_feat.npy", "acoustic": "audio_feat.npy"}
    assert settings.teacher.hidden == [128, 64]
    assert settings.teacher.prompt is False
    assert settings.teacher.l2 == 1e-5
    assert settings.run.seed == 7
    assert settings.cluster.threads is None
    assert settings.recommend.users == ["u1", "17"]
    assert load_settings(None, ["source.modalities={}"]).source.modalities == {}


def test_the_last_override_wins_and_the_recipe_is_below_them(recipe):
    settings = load_settings(recipe("teacher: {dim: 8, train: {epochs: 3}}"), ["teacher.dim=16", "teacher.dim=32"])
    assert (settings.teacher.dim, settings.teacher.train.epochs) == (32, 3)
    assert settings.teacher.train.batch_size == Settings().teacher.train.batch_size


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_load(name):
    settings = load_settings(name, ["source.path=/data"])
    assert settings.dir == str(Path(f"runs/{name}").absolute())


def test_the_demo_needs_no_file():
    assert load_settings("demo", []).source.format == "synthetic"


def test_missing_recipe():
    with fails("recipe 'dmeo': no such file, and no shipped recipe of that name (there are: demo, electronics, lists, tiktok)"):
        load_settings("dmeo", [])


def test_run_dir(recipe):
    assert load_settings(None, []).dir == str(Path("runs/default").absolute())  # workers have other working directories
    assert load_settings(recipe("run: {seed: 4}"), []).dir == str(Path("runs/mine").absolute())
    assert load_settings(recipe("run: {dir: s3://bucket/x/}"), []).dir == "s3://bucket/x"
    assert load_settings("demo", ["run.dir=/somewhere"]).dir == "/somewhere"


def test_folders_of_other_runs_are_absolute_too():
    """Workers open them, and have other working directories."""
    words = ["labels.run=runs/first", "teacher.kind=ensemble", "teacher.components={one: {artifact: runs/b/teacher}, ease: {}}"]
    settings = load_settings("lists", ["source.path=/data", *words])
    assert settings.labels.run == str(Path("runs/first").absolute())
    assert settings.teacher.components["one"]["artifact"] == str(Path("runs/b/teacher").absolute())
    assert load_settings("demo", ["labels.run=s3://bucket/x"]).labels.run == "s3://bucket/x"


def test_a_saved_configuration_is_a_recipe(recipe):
    settings = load_settings("demo", ["teacher.hidden=[16]", "source.modalities={}", "distill.num_top=3", "recommend.users=['007']"])
    assert load_settings(recipe(yaml.safe_dump(as_dict(settings))), []) == settings


def test_every_setting_has_help():
    assert [name for name, field, _ in walk() if not field.metadata.get("help")] == []


@pytest.mark.parametrize("verb", VERBS)
def test_describe_lists_what_the_verb_reads(verb):
    text = describe(VERBS[verb].sections)
    listed = re.findall(r"^  (\S+) \((.+), default (.*)\)\n      (.+)$", text, re.MULTILINE)
    expected = [name for name, _, _ in walk() if name.split(".")[0] in VERBS[verb].sections]
    assert [name for name, *_ in listed] == expected
    assert {section.split(".")[0] for section in expected} == set(VERBS[verb].sections)


def test_describe_shows_type_default_and_help():
    text = describe(VERBS["pipeline"].sections)
    assert "  teacher.dim (int, default 64)\n      embedding size d\n" in text
    assert "  run.dir (str or not set, default not set)\n" in text
    assert "  recommend.exclude_seen (bool, default true)\n" in text


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_settings("demo", []).run.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["teacher.prompt=false", "distill.rounds=2"], "no prompt to tune"),
        (["teacher.prompt=false", "distill.regime=inline"], "no prompt to tune"),
        (["labels.mode=streamed", "distill.regime=inline"], "labels.mode=streamed has no meaning"),
        (["student.kind=mlp", "distill.use_teacher=false"], "start from a teacher"),
        (["teacher.reduction_dtype=bfloat16"], "set cluster.zero_stage=1, 2 or 3"),
        (["cluster.checkpoint_activations=true"], "set teacher.hidden"),
        (["cluster.engine=sampled", "cluster.micro_batches=9", "teacher.train.batch_size=8"], "cut the batch into fewer shares"),
    ],
)
def test_settings_that_exclude_each_other_across_sections(overrides, words):
    with pytest.raises(InputError, match=words):
        load_settings(None, overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cluster.engine=sampled"], ("the full engine alone", "set cluster.engine=full, or teacher.kind=promptmm")),
        (["cluster.micro_batches=2"], ("not with cluster.micro_batches=2", "leave cluster.micro_batches=2 out")),
        (["sampling.exclude_seed_edges=true"], ("not with sampling.exclude_seed_edges=true", "set cluster.engine=full")),
        (["distill.regime=inline"], ("no prompt to tune with distill.regime=inline", "set distill.regime=rounds")),
        (["distill.rounds=2"], ("no prompt to tune", "distill.rounds=1")),
        (["teacher.hidden=[8]"], ("no reduction towers for teacher.hidden=[8]", "leave teacher.hidden at its default")),
        (
            ["teacher.reduction_dtype=bfloat16", "cluster.zero_stage=1"],
            ("for teacher.reduction_dtype=bfloat16", "leave teacher.reduction_dtype"),
        ),
        (
            ["cluster.zero_stage=2", "cluster.offload_optimizer=true"],
            ("for cluster.zero_stage=2", "leave cluster.zero_stage at its default"),
        ),
        (["cluster.checkpoint_activations=true"], ("for cluster.checkpoint_activations=true", "or set teacher.kind=promptmm")),
    ],
)
@pytest.mark.parametrize("kind", ["mf", "lightgcn", "vbpr", "lattice"])
def test_what_a_baseline_has_not_is_refused(kind, overrides, message):
    with fails(f"teacher.kind={kind} ", *message):
        load_settings(None, [f"teacher.kind={kind}", *overrides])


def test_a_baseline_needs_the_full_engine():
    settings = load_settings("tiktok", ["source.path=/data", "teacher.kind=lattice", "student.warm_start=true"])
    assert settings.needs_full_engine == "teacher.kind=lattice"
    with fails("teacher.kind='lattise': no such teacher; the kinds that ship are promptmm, mf, lightgcn, vbpr, lattice"):
        load_settings(None, ["teacher.kind=lattise"])


@pytest.fixture
def own(tmp_path, monkeypatch) -> str:
    """A module with kinds of one's own; returns its name."""
    name = f"own_kinds_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "from promptmm.core.students import LayeredStudent, Student\n"
        "from promptmm.core.teacher import Teacher, WholeTeacher\n"
        "class Layered(LayeredStudent): pass\n"
        "class Whole(Student): pass\n"
        "class Boastful(Student): engines = ('full', 'sampled')\n"
        "class Frozen(LayeredStudent): learns_rows = False\n"
        "class Foreign: component = 'student'\n"
        "class Untrained(Student): engines = ()\n"
        "class Modest(WholeTeacher): pass\n"
        "class Bare(Teacher): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["student.kind={own}:Whole", "cluster.engine=sampled"], "Whole is trained by the full engine alone: set cluster.engine=full, or"),
        (["student.kind={own}:Whole", "cluster.engine=sampled"], "or your own subclass of core.students.LayeredStudent"),
        (["student.kind={own}:Whole", "cluster.micro_batches=2"], "set cluster.engine=full (without cluster.micro_batches=2)"),
        (["student.kind={own}:Boastful"], "the sampled engine trains subclasses of core.students.LayeredStudent"),
        (["student.kind={own}:Frozen"], "that learn their rows; make it one, or set its engines to ('full',)"),
        (["student.kind={own}:Foreign"], "Foreign is not a subclass of promptmm.core.students.Student; the kinds"),
        (["student.kind={own}:Untrained"], "no engine trains it; its engines have to be some of full and sampled"),
        (["student.kind={own}:Modest"], "Modest is not a subclass of promptmm.core.students.Student; the kinds that ship are lightgcn, mf"),
        (["teacher.kind={own}:Modest", "cluster.engine=sampled"], "Modest is trained by the full engine alone"),
        (["teacher.kind={own}:Modest", "distill.rounds=2"], "Modest has no prompt to tune"),
        (["teacher.kind={own}:Bare"], "the full engine trains subclasses of core.teacher.WholeTeacher"),
    ],
)
def test_own_kinds_that_the_engine_cannot_train_are_refused(own, words, message):
    with fails(message):
        load_settings(None, [word.format(own=own) for word in words])


def test_own_kinds_decide_the_engine_as_shipped_ones_do(own):
    assert load_settings(None, [f"student.kind={own}:Layered"]).needs_full_engine is None
    assert load_settings(None, [f"student.kind={own}:Whole"]).needs_full_engine == f"student.kind={own}:Whole"
    assert load_settings(None, [f"teacher.kind={own}:Modest"]).needs_full_engine == f"teacher.kind={own}:Modest"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("teacher.dim=true", "teacher.dim=true: expected int; true and false (also yes and no) are switches"),
        ("teacher.l2=yes", "teacher.l2=true: expected float"),
        ("student.train.epochs=false", "student.train.epochs=false: expected int"),
        ("teacher.hidden=[true]", "teacher.hidden=[True]: expected list[int]"),
        ("distill.losses={prob: true}", "distill.losses={'prob': True}: expected dict[str, float]"),
        ("teacher.components={a: {kind: mf, dim: true}}", "teacher.components.a.dim=true: expected int"),
        ("teacher.components={a: {kind: mf, train: {epochs: true}}}", "teacher.components.a.train.epochs=true: expected int"),
        ("teacher.l2=.inf", "teacher.l2=inf: expected a finite number"),
        ("teacher.components={a: {kind: mf, l2: .inf}}", "teacher.components.a.l2=inf: expected a finite number"),
        ("run.dir=''", "run.dir='': an empty text; leave the setting out"),
        ("recommend.output=''", "recommend.output='': an empty text"),
    ],
)
def test_values_that_their_types_would_take_are_refused(word, said):
    with pytest.raises(InputError) as found:
        load_settings("demo", [word])
    assert said in str(found.value)


def test_switches_and_texts_are_what_they_were():
    settings = load_settings("demo", ["cluster.use_gpu=yes", "run.dir=", "teacher.l2=0", "source.modalities={}"])
    assert settings.cluster.use_gpu is True
    assert settings.dir.endswith("runs/demo")
