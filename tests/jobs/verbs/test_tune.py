"""Settings from a catalog's facts, and the search from there on, through the command line."""

import dataclasses
import json
import re
from importlib import resources

import numpy as np
import pytest
import yaml
from promptmm.core.errors import InputError
from promptmm.graph_store.dataset import Dataset
from promptmm.jobs.inspection.defaults import defaults_for, has_few_items
from promptmm.jobs.inspection.derivation import recipe_of
from promptmm.jobs.inspection.facts import CatalogFacts
from promptmm.jobs.settings import Settings, build, load_settings
from promptmm.jobs.tuning.questions import teacher_questions
from promptmm.jobs.tuning.search import is_ahead, search_settings
from promptmm.jobs.tuning.trials import Trial, Trials
from promptmm.jobs.verbs.tune import seconds_of, without_weights
from safetensors.numpy import load_file

SMALL = (
    "source.format=synthetic", "source.synthetic_num_users=120", "source.synthetic_num_items=80",
    "source.synthetic_interactions_per_user=12", "source.synthetic_dims={visual: 16, text: 8}", "cluster.executor=local",
    "cluster.threads=1",
)  # fmt: skip
QUICK = ("teacher.train.epochs=2", "teacher.dim=8", "student.train.epochs=4", "labels.epochs=2", "distill.top_depth=20")


def facts_of(folder) -> CatalogFacts:
    return CatalogFacts.from_json(json.loads((folder / "inspection.json").read_text())["facts"])


def test_a_pipeline_without_a_recipe_takes_its_settings_from_the_facts(command, tmp_path):
    where = f"run.dir={tmp_path}"
    ended = command("pipeline", *SMALL, *QUICK, where)
    assert ended.code == 0, ended.err
    derived = yaml.safe_load((tmp_path / "derived.yaml").read_text())
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert derived["teacher"]["kind"] == config["teacher"]["kind"] == "ensemble"
    assert config["teacher"]["dim"] == 8  # what the command says is over what the facts say
    assert derived["teacher"]["dim"] != 8
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["student"]["test"]["recall@20"] > 0
    assert "| component | weight |" in (tmp_path / "report.md").read_text()
    again = command("pipeline", *SMALL, *QUICK, where)
    assert again.code == 0
    assert "[train-teacher] already done" in again.out
    single = command("train-teacher", *SMALL, *QUICK, where)  # a verb of the same run has the same settings
    assert "[train-teacher] already done" in single.out
    other = command("train-teacher", *SMALL, *QUICK, where, "teacher.kind=mf")
    assert other.code == 2
    assert "teacher.kind=ensemble (now mf)" in other.err


def test_a_recipe_is_taken_as_it_is(command, tmp_path):
    recipe = tmp_path / "own.yaml"
    recipe.write_text("teacher: {kind: mf}\ndistill: {list_weight: 0.0, embedding_weight: 0.0}\n")
    ended = command("pipeline", str(recipe), *SMALL, *QUICK, "student.dim=8", f"run.dir={tmp_path}/run")
    assert ended.code == 0, ended.err
    assert not (tmp_path / "run" / "derived.yaml").exists()
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["teacher"]["kind"] == "mf"


def test_a_run_that_began_with_the_plain_defaults_goes_on_with_them(command, tmp_path):
    words = (*SMALL, *QUICK, f"run.dir={tmp_path}")
    for verb in ("prepare", "train-teacher"):
        assert command(verb, *words).code == 0
    ended = command("pipeline", *words)
    assert ended.code == 0, ended.err
    assert "[train-teacher] already done" in ended.out
    assert not (tmp_path / "derived.yaml").exists()


def test_another_dataset_has_other_facts(command, tmp_path):
    where = f"run.dir={tmp_path}"
    assert command("pipeline", *SMALL, *QUICK, where).code == 0
    before = facts_of(tmp_path)
    sparser = [word for word in SMALL if "interactions" not in word] + ["source.synthetic_interactions_per_user=1"]
    ended = command("pipeline", *sparser, *QUICK, where, "run.redo=prepare")
    assert ended.code == 0, ended.err
    assert facts_of(tmp_path) != before
    assert has_few_items(facts_of(tmp_path))
    teacher = yaml.safe_load((tmp_path / "derived.yaml").read_text())["teacher"]
    assert "loss" not in teacher  # BPR
    assert teacher["components"]["promptmm-2"] == {"kind": "promptmm", "seed": 1}


@pytest.mark.parametrize("dims", ["null", "{}"], ids=["features", "no features"])
@pytest.mark.parametrize("validation", [0.1, 0.0], ids=["validation", "none"])
def test_derived_settings_are_allowed_together(command, tmp_path, dims, validation):
    words = [word for word in SMALL if "dims" not in word] + [f"source.modalities={dims}", f"source.validation_ratio={validation}"]
    assert command("inspect", *words, f"run.dir={tmp_path}").code == 0
    advice = defaults_for(facts_of(tmp_path))
    text = recipe_of(advice, "A title.")
    assert build(Settings, yaml.safe_load(text)).teacher.kind == "ensemble"
    components = next(one.value for one in advice if one.setting == "teacher.components")
    assert ("promptmm" in components) == ("content" in components) == (dims != "{}")
    assert all(one.because in " ".join(text.replace("\n#", " ").split()) for one in advice[:3])


def test_components_that_only_show_a_temperature_are_trained_once(command, tmp_path):
    shown = "shown: {kind: mf, temperature: 0.3, weight: 0, train: {epochs: 1}}"
    words = (
        "teacher.kind=ensemble",
        f"teacher.components={{{shown}, lightgcn: {{temperature: null}}, spectral: {{}}}}",
        "teacher.loss=softmax",
    )
    ended = command(
        "tune", *SMALL, *QUICK, *words, "distill.list_weight=0", "distill.embedding_weight=0", f"run.dir={tmp_path}", "budget=10s"
    )
    assert ended.code == 0, ended.err
    assert "the weights of teacher.components are left out" not in ended.out
    assert ended.out.count("component shown, ") == 1
    assert ended.out.count("component lightgcn, ") == len(re.findall(r"\[tune\] teacher[^:]*: validation", ended.out)) > 1
    teacher = yaml.safe_load((tmp_path / "tuned.yaml").read_text())["teacher"]
    assert (set(teacher["components"]), teacher["components"]["lightgcn"].get("temperature", "its own")) == (
        {"lightgcn", "spectral"},
        "its own",
    )
    assert teacher["temperature"] > 0


def test_given_weights_are_left_to_validation(capsys):
    weighted = "teacher.components={mf: {weight: 1, dim: 8}, spectral: {weight: 2}}"
    settings = load_settings("lists", [*SMALL, "teacher.kind=ensemble", weighted])
    assert without_weights(settings).teacher.components == {"mf": {"dim": 8}, "spectral": {}}
    assert "the weights of teacher.components are left out" in capsys.readouterr().out
    free = load_settings("lists", [*SMALL, "teacher.kind=ensemble", "teacher.components={mf: {dim: 8}}"])
    assert without_weights(free) == free
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("fits", "most"), [(True, 1 << 16), (False, 1 << 14)])
def test_a_batch_does_not_grow_with_the_catalog_without_end(command, tmp_path, fits, most):
    busier = [word.replace("per_user=12", "per_user=25") for word in SMALL]
    assert command("inspect", *busier, f"run.dir={tmp_path}").code == 0
    facts = facts_of(tmp_path)
    huge = dataclasses.replace(facts, num_interactions={**facts.num_interactions, "train": 10**9})
    batch = next(one for one in defaults_for(huge, fits) if one.setting == "teacher.train.batch_size")
    assert batch.value == most
    assert f"{-(-(10**9) // most)} steps" in batch.because


@pytest.mark.parametrize(
    ("users", "items", "median", "keeps", "smooths"),
    [
        (30_000, 20_000, 14, True, False),
        (30_000, 20_000, 8, False, True),
        (120, 80, 8, False, True),
        (30_000, 20_000, 2, False, True),
        (10**6, 10**5, 14, False, False),
        (10**6, 10**5, 8, False, False),
    ],
    ids=["larger", "larger, sparse", "small, sparse", "few items a user", "too many scores", "too many scores, sparse"],
)
def test_similarities_of_items_are_kept_smoothed_or_left_out(command, tmp_path, users, items, median, keeps, smooths):
    assert command("inspect", *SMALL, f"run.dir={tmp_path}").code == 0
    facts = facts_of(tmp_path)
    validation = dataclasses.replace(facts.validation, median_train_items=median)
    advice = defaults_for(dataclasses.replace(facts, num_users=users, num_items=items, validation=validation))
    settings = build(Settings, yaml.safe_load(recipe_of(advice, "A title.")))
    components, few = settings.teacher.components, median == 2
    ranks = {name: own.get("linear", {}).get("rank") for name, own in components.items()}
    assert (ranks.get("rp3beta") == 0) == keeps
    assert ("item_knn" in components and ranks["rp3beta"] is None) == smooths
    assert ("neighbours" in components.get("spectral", {}).get("linear", {})) == keeps
    assert ("polynomial" in components) == (not keeps and not smooths)
    assert ("spectral" in components) == (not few)
    assert settings.student.dim == (256 if users > 120 and not few else 128)
    assert not settings.distill.score_positive
    assert settings.student.train.evaluate_every == (5 if few else 1)
    shown = {name for name, own in settings.teacher.components.items() if own.get("weight") == 0}
    assert shown == ({"lightgcn-20", "lightgcn-15", "lightgcn-10"} if median > 2 else set())  # no table shows which temperature fits
    assert (settings.teacher.train.evaluate_every, settings.teacher.train.patience) == (
        (3, 3) if median == 2 else (2, 2) if users > 120 else (1, 4)
    )
    sharded = defaults_for(dataclasses.replace(facts, num_users=users, num_items=items, validation=validation), fits=False)
    settings = build(Settings, yaml.safe_load(recipe_of(sharded, "A title.")))  # no ensemble, and so nothing that scores histories
    assert settings.teacher.temperature == (0.2 if median == 2 else 0.15)
    assert (settings.student.dim, settings.distill.score_positive) == (128, False)


def test_the_shipped_experiment_has_the_components_that_are_derived(command, tmp_path):
    """Its catalog without features is a larger one."""
    assert command("inspect", *SMALL, f"run.dir={tmp_path}").code == 0
    facts = facts_of(tmp_path)
    validation = dataclasses.replace(facts.validation, median_train_items=6)
    sports = dataclasses.replace(facts, num_users=35_598, num_items=18_357, modalities=type(facts.modalities)(), validation=validation)
    derived = next(one for one in defaults_for(sports) if one.setting == "teacher.components")
    experiment = yaml.safe_load((resources.files("promptmm.jobs.recipes") / "experiments/catalogs.yaml").read_text())
    assert experiment["catalogs"]["sports"]["models"]["ensemble"]["teacher.components"] == derived.value


@pytest.mark.parametrize("dims", ["null", "{}"], ids=["features", "no features"])
def test_what_fits_no_worker_is_trained_on_parts_of_the_graph(command, tmp_path, dims):
    """The multi-modal teacher alone, or without features none."""
    words = (*SMALL, *QUICK, f"source.modalities={dims}", f"run.dir={tmp_path}", "cluster.engine=sampled", "sampling.fan_outs=[3]")
    more = ("student.dim=8", "student.init_scale=0.1", "graph.num_parts=1")
    ended = command("pipeline", *words, *more)
    assert ended.code == 0, ended.err
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["teacher"]["kind"] == "promptmm"
    assert config["distill"]["use_teacher"] == (dims != "{}")
    assert (tmp_path / "teacher").exists() == (dims != "{}")


def test_tune_writes_a_recipe_and_goes_on_where_it_was(command, tmp_path):
    where = f"run.dir={tmp_path}/run"
    first = command("tune", *SMALL, *QUICK, where, "budget=1s")
    assert first.code == 0, first.err
    assert "student: validation recall@20" in first.out
    recipe = tmp_path / "run" / "tuned.yaml"
    values = yaml.safe_load(recipe.read_text())
    assert values["teacher"]["dim"] == 8
    assert values["source"]["synthetic_num_users"] == 120
    again = command("tune", *SMALL, *QUICK, where, "budget=30s")
    assert again.code == 0, again.err
    assert "component spectral" not in again.out  # trials of the first command are not trained again, nor fitted components
    assert again.out.count("[tune] teacher") > 1
    assert "Searched on validation in" in recipe.read_text()
    ended = command("pipeline", str(recipe), f"run.dir={tmp_path}/tuned", "cluster.executor=local", "cluster.threads=1")
    assert ended.code == 0, ended.err


def test_trials_are_compared_user_by_user(command, tmp_path):
    ended = command("tune", *SMALL, *QUICK, f"run.dir={tmp_path}", "budget=20s")
    assert ended.code == 0, ended.err
    folders = sorted((tmp_path / "tuning").iterdir())
    assert len(folders) > 3
    for folder in folders:
        of_users = load_file(folder / "validation.safetensors")["of_users"]
        value = json.loads((folder / "cell.json").read_text())["validation"]["recall@20"]
        assert of_users.ndim == 1
        assert of_users.mean() == pytest.approx(value, abs=1e-6)


def test_a_metric_of_all_lists_together_can_choose(command, tmp_path):
    ended = command(
        "tune",
        *SMALL,
        *QUICK,
        f"run.dir={tmp_path}",
        "budget=1s",
        "evaluation.select_by=coverage@20",
        "teacher.kind=lightgcn",
        "teacher.components={}",
    )
    assert ended.code == 0, ended.err
    assert "student: validation coverage@20" in ended.out
    assert not [*tmp_path.glob("tuning/*/validation.safetensors")]


def _trial(of_users, value=None):
    values = None if of_users is None else np.asarray(of_users, dtype=float)
    return Trial("a-trial", "teacher", Settings(), "digest", value if values is None else float(values.mean()), 1.0, values)


BEST = np.array([0.0, 1.0, 0.5, 0.0, 1.0, 0.0, 0.5, 1.0])


@pytest.mark.parametrize(
    ("trial", "ahead"),
    [
        (_trial(BEST), False),
        (_trial(BEST + 0.001), True),  # a small lead that every user has
        (_trial(BEST + np.array([1, -0.9, 0, 0, 0, 0, 0, 0])), False),  # a larger one of a single user's luck
        (_trial(BEST + np.array([1, -0.1, 0.5, 0, 0, 1, 0.5, 0])), True),
        (_trial(BEST - 0.001), False),
        (_trial(None), False),  # failed
    ],
)
def test_a_lead_within_its_error_is_not_taken(trial, ahead):
    assert is_ahead(trial, _trial(BEST), "recall@20") == ahead


def test_what_is_not_taken_is_said(capsys):
    assert not is_ahead(_trial(BEST + np.array([1, -0.9, 0, 0, 0, 0, 0, 0])), _trial(BEST), "recall@20")
    assert "a-trial: its lead of 0.0125 in validation recall@20 is within the standard error of" in capsys.readouterr().out


def test_a_metric_without_users_needs_any_lead():
    assert is_ahead(_trial(None, 0.51), _trial(None, 0.5), "coverage@20")
    assert not is_ahead(_trial(None, 0.5), _trial(None, 0.5), "coverage@20")


class Outcomes(Trials):
    """Trials whose outcome is given by name, with a lead for every user; all of them take a second."""

    def __init__(self, settings, leads):
        super().__init__(settings, None)
        self.leads = leads

    def run(self, name, stage, settings, teacher=None):
        self._seconds.setdefault(stage, []).append(1.0)
        self.spent += 1
        values = BEST + self.leads.get(name, -0.1)
        self.finished[name] = Trial(name, stage, settings, name, float(values.mean()), 1.0, values)
        return self.finished[name]


@pytest.mark.parametrize(
    ("of_student", "teachers", "students"), [(0.0, 15, 3), (-0.2, 11, 7)], ids=["as good as its teacher", "behind its teacher"]
)
def test_the_budget_goes_where_something_is_to_be_gained(tmp_path, of_student, teachers, students):
    """A student that ranks as its teacher does has nothing to gain from other students' settings."""
    settings = load_settings(None, [f"run.dir={tmp_path}", "teacher.kind=promptmm"])
    trials = Outcomes(settings, {"teacher": 0.0, "student": of_student})
    teacher, student = search_settings(trials, 18.5)
    stages = [trial.stage for trial in trials.finished.values()]
    assert (stages.count("teacher"), stages.count("student")) == (teachers, students)
    assert (teacher.trial.name, student.trial.name.startswith("student")) == ("teacher", True)


def test_settings_that_were_replaced_are_not_tried_again(tmp_path):
    settings = load_settings(None, [f"run.dir={tmp_path}", "teacher.kind=promptmm", "distill.temperature=2.0"])
    trials = Outcomes(settings, {"teacher": 0.0, "student": -0.05, "student-temperature-1.0": 0.1})
    _, student = search_settings(trials, 1000.0)
    tried = {name for name in trials.finished if name.startswith("student-temperature")}
    assert tried == {"student-temperature-1.0", "student-temperature-4.0", "student-temperature-8.0"}
    assert student.advice[0].because.startswith("τ, the temperature of the lists: validation recall@20 0.6000 in place of 0.4500 (+0.1500")


def test_a_better_teacher_has_a_student_of_its_own(tmp_path):
    settings = load_settings(None, [f"run.dir={tmp_path}", "teacher.kind=promptmm"])
    trials = Outcomes(settings, {"teacher": 0.0, "student": 0.0, "teacher-layers-1": 0.1, "student-of-teacher-layers-1": 0.05})
    teacher, student = search_settings(trials, 12.0)
    assert (teacher.trial.name, student.trial.name) == ("teacher-layers-1", "student-of-teacher-layers-1")
    assert student.settings.teacher.layers == 1


@pytest.mark.parametrize(
    ("leads", "weights", "tried", "taken"),
    [
        ({"together": 0.2}, [0.2, 0.2, 0.2], ["together"], {"promptmm-2", "promptmm-3", "promptmm-4"}),
        ({"together": 0.2, "together-3": 0.1}, [0.2, 0.01, 0.2], ["together", "together-3"], {"promptmm-2", "promptmm-4"}),
        ({"together": 0.2}, [0.2, 0.01, 0.2], ["together", "together-3"], set()),  # without the one there is no lead any more
        ({"together": 0.2}, [0.0, 0.01, 0.04], ["together"], set()),
        ({}, [0.2, 0.2, 0.2], ["together"], set()),
    ],
)
def test_the_sum_that_is_compared_is_the_one_that_the_recipe_trains(tmp_path, monkeypatch, leads, weights, tried, taken):
    words = [f"run.dir={tmp_path}", "teacher.kind=ensemble", "teacher.hidden=[]", "teacher.components={promptmm: {}, spectral: {}}"]
    further = {f"promptmm-{number}": {"weight": weight} for number, weight in zip((2, 3, 4), weights)}
    monkeypatch.setattr("promptmm.jobs.tuning.search.read_manifest", lambda url, kind: {"components": further})
    trials = Outcomes(load_settings(None, [*words, "distill.list_weight=0", "distill.embedding_weight=0"]), {"teacher": 0.0, **leads})
    teacher, _ = search_settings(trials, 1000.0)
    assert [name for name in trials.finished if name.startswith("together")] == tried
    assert teacher.trial.name == (tried[-1] if taken else "teacher")
    assert {*teacher.settings.teacher.components} == {"promptmm", "spectral"} | taken
    if taken:
        assert [one.because for one in teacher.advice][-1].startswith(f"{len(taken) + 1} trained teachers together: ")


def test_tune_asks_about_the_multi_modal_component_and_makes_the_others_once(command, tmp_path):
    """Users with some twenty items have tables in the ensemble, whose best temperature the multi-modal component begins with."""
    busier = [word.replace("per_user=12", "per_user=25") for word in SMALL]
    ended = command("tune", *busier, *QUICK, f"run.dir={tmp_path}", "budget=20s")
    assert ended.code == 0, ended.err
    for once in ("mf-20", "mf-13", "mf-30", "polynomial", "spectral", "ease", "content"):
        assert ended.out.count(f"component {once}, ") == 1
    assert ended.out.count("component promptmm, ") == len(re.findall(r"\[tune\] teacher[^:]*: validation", ended.out)) > 1
    assert "[tune] teacher-loss-bpr" in ended.out
    teacher = yaml.safe_load((tmp_path / "tuned.yaml").read_text())["teacher"]
    assert "temperature" not in teacher["components"]["promptmm"]
    assert teacher["temperature"] in (0.1, 0.13, 0.15, 0.2, 0.25, 0.3)


def test_tune_never_reads_the_test_split(command, tmp_path, monkeypatch):
    read, csr = set(), Dataset.csr
    monkeypatch.setattr(Dataset, "csr", lambda self, split: read.add(split) or csr(self, split))
    ended = command("tune", *SMALL, *QUICK, f"run.dir={tmp_path}", "budget=1s")
    assert ended.code == 0, ended.err
    assert read == {"train", "validation"}


@pytest.mark.parametrize(("budget", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200)])
def test_budgets(budget, seconds):
    assert seconds_of(budget) == seconds


def test_a_budget_may_be_a_plain_number():
    assert seconds_of(load_settings("lists", ["source.path=x", "source.format=lightgcn", "tune.budget=90"]).tune.budget) == 90


@pytest.mark.parametrize("budget", ["soon", "10d", "0s", "", "1.2.3m"])
def test_what_is_no_budget_is_refused(budget):
    with pytest.raises(InputError, match=r"tune\.budget=.*expected a duration"):
        seconds_of(budget)


@pytest.mark.parametrize("word", ["cluster.engine=sampled", "cluster.num_workers=2"])
def test_what_trials_cannot_have_is_refused(command, tmp_path, word):
    ended = command("tune", *SMALL, *QUICK, f"run.dir={tmp_path}", word, "cluster.executor=ray")
    assert ended.code == 2
    assert "set cluster.engine=full and cluster.num_workers=1" in ended.err


@pytest.mark.parametrize(
    ("teacher", "asked", "not_asked"),
    [
        ("lightgcn", {"the loss", "depth", "size"}, {"how features enter", "whitening", "η, the features' share"}),
        ("vbpr", {"size"}, {"the loss", "how features enter", "τ_s, the temperature of the softmax"}),
        ("promptmm", {"the loss", "how features enter", "whitening"}, set()),
        ("ease", set(), {"size", "depth"}),
        ("ensemble", {"the loss", "how features enter"}, set()),
    ],
)
def test_questions_are_those_of_the_teacher_that_is_trained(tmp_path, teacher, asked, not_asked):
    settings = load_settings(None, [f"run.dir={tmp_path}", f"teacher.kind={teacher}"])
    about = {question.about for question in teacher_questions(settings)}
    assert asked <= about
    assert not about & not_asked


def test_a_catalog_without_a_validation_split_has_nothing_to_choose_on(command, tmp_path):
    ended = command("tune", *SMALL, *QUICK, "source.validation_ratio=0", f"run.dir={tmp_path}")
    assert ended.code == 2
    assert "no validation split to choose on" in ended.err


def test_settings_without_a_recipe_are_the_defaults_where_nothing_was_derived(tmp_path):
    assert load_settings(None, [f"run.dir={tmp_path}"]).teacher == Settings().teacher
