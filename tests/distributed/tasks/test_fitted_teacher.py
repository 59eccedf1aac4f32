"""Linear models as teachers: they are fitted, evaluated and distilled from, in one process and on several workers."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from promptmm.core.artifact import read_manifest
from promptmm.core.config import TeacherConfig
from promptmm.core.config.vectors import VectorsConfig
from promptmm.core.errors import InputError
from promptmm.core.kinds import TEACHERS
from promptmm.core.linear.config import LinearConfig
from promptmm.core.linear.fit import LinearInputs
from promptmm.core.ranking import evaluate
from promptmm.distributed.artifacts.teacher import read_revision, teacher_config_of
from promptmm.distributed.execution.dataset_graph import train_graph
from promptmm.distributed.execution.local import LocalExecutor
from promptmm.graph_store.dataset import open_dataset
from promptmm.jobs.runs.worker_jobs import teacher_job
from promptmm.jobs.settings import load_settings
from promptmm.jobs.verbs import run_verb

HERE = [
    name for name in TEACHERS.names if TEACHERS.get(name).is_fitted and (name != "ials" or importlib.util.find_spec("implicit") is not None)
]
BY_SCORES = ("distill.list_weight=0", "distill.embedding_weight=0", "teacher.hidden=[]")
LOCAL = "cluster.executor=local"
GIVEN = (
    "teacher.linear.user_exponent=1",
    "teacher.linear.item_exponent=0.5",
    "teacher.linear.rank=12",
    "teacher.linear.output_exponent=0.5",
)
LASTFM = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "lfm2k"
LASTFM_WORDS = ["source.format=mmrec", f"source.path={LASTFM}", "source.modalities={textual: all-MiniLM-L6-v2.npy}"]
OWN = """
from promptmm.core.linear.base import LinearTeacher, chained, rank_choice
from promptmm.core.linear.factors import Scores
from promptmm.core.linear.search import Choice


class Walks(LinearTeacher):
    reads = ("rank", "user_exponent")

    def choices(self):
        return {"user_exponent": Choice(1.0, (0.0, 1.0)), "rank": rank_choice(self.interactions.num_items)}

    def vectors(self, settings):
        of = self.interactions
        both = of.scaled(of.user_scale(-settings["user_exponent"]), of.item_scale(0.0))
        shared = Scores(of.num_items, lambda x: both.to_items(both.to_users(x)), lambda x: both.to_items(both.to_users(x)))
        factors = self.cache.of(settings["user_exponent"], chained(of.histories(), shared), settings["rank"], of.like)
        return factors.vectors(settings["rank"])


class Towers(Walks):
    has_towers = True
"""


@pytest.fixture
def fit(fork_run, tiny_settings):
    """Fits a kind of teacher in this process, in a run of its own that never sees the test split; returns folder and dataset."""

    def run(kind, *overrides, name="run"):
        folder = fork_run(name)
        settings = tiny_settings(folder, *BY_SCORES, f"teacher.kind={kind}", LOCAL, *overrides)
        dataset = open_dataset(f"{folder}/dataset").without("test")
        LocalExecutor(settings.cluster, settings.dir, dataset).run(teacher_job(settings, dataset))
        return folder, dataset

    return run


@pytest.mark.parametrize("kind", HERE)
def test_every_kind_is_fitted_on_train_and_validation_alone(fit, kind, capsys):
    folder, dataset = fit(kind)
    manifest, vectors = read_manifest(str(folder / "teacher"), "teacher"), read_revision(str(folder / "teacher"), 0).vectors
    held_out, seen = dataset.csr("validation"), dataset.csr("train")
    found = evaluate(vectors.user, vectors.item, held_out, seen, [20])["recall@20"]
    random = [torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (dataset.num_users, dataset.num_items)]
    assert found > (1 if kind == "popularity" else 1.15) * evaluate(*random, held_out, seen, [20])["recall@20"]
    said = capsys.readouterr().out
    assert f"[teacher] {kind} fitted in " in said
    assert f"before the first step  validation recall@20 {found:.4f}" in said
    assert "best: the start" in said
    assert manifest["best_epoch"] == -1
    assert manifest["num_parameters"] == vectors.user.numel() + vectors.item.numel()
    assert manifest["linear"]["trials"] > 1
    assert vectors.modal_item == {}
    assert [m for m, _ in manifest["modalities"]] == (list(dataset.modalities) if kind == "content" else [])
    config = dataclasses.replace(LinearConfig(), **manifest["linear"]["settings"])
    if kind != "content":  # a plain call with what was chosen gives what the artifact has
        again = TEACHERS.get(kind).fit(LinearInputs(train_graph(dataset), {}, 0), config)
        assert torch.equal(again.items, vectors.item)
    assert teacher_config_of(manifest) == TeacherConfig(
        **{**manifest["config"], "train": teacher_config_of(manifest).train, "linear": LinearConfig(), "vectors": VectorsConfig()}
    )


def test_without_a_validation_split_the_start_values_stand(tmp_path, tiny_settings, capsys):
    folder = tmp_path / "run"
    words = ("source.train_ratio=0.9", "source.validation_ratio=0", "teacher.kind=spectral", LOCAL, *BY_SCORES)
    for verb in ("prepare", "train-teacher"):
        run_verb(verb, tiny_settings(folder, *words))
    assert "chosen on validation" not in capsys.readouterr().out
    linear = read_manifest(str(folder / "teacher"), "teacher")["linear"]
    assert (linear["trials"], linear["chosen"]) == (0, [])
    assert linear["settings"]["item_exponent"] == 0.5


def test_a_search_that_takes_long_says_where_it_is(fit, capsys, monkeypatch):
    monkeypatch.setattr("promptmm.distributed.tasks.fitted_teacher.LINE_SECONDS", 0.0)
    fit("ease", "teacher.linear.trials=3")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[teacher] ease: trial ")]
    assert [re.sub(r"0\.\d{4}|\d+ s", "#", line) for line in lines] == [
        f"[teacher] ease: trial {number} of at most 3 has recall@20 # (best #), #" for number in (1, 2, 3)
    ]


def test_given_settings_are_not_searched(fit):
    given = ("teacher.linear.ridge=0.5", "teacher.linear.dropout=0", "teacher.linear.rank=7", "teacher.linear.trials=2")
    folder, _ = fit("ease", *given)
    linear = read_manifest(str(folder / "teacher"), "teacher")["linear"]
    assert linear["chosen"] == ["user_exponent"]
    assert linear["settings"]["ridge"] == 0.5
    assert read_revision(str(folder / "teacher"), 0).vectors.user.shape[1] == 7


def test_a_content_score_is_added_with_a_weight_that_validation_chooses(fit):
    folder, dataset = fit("spectral", "teacher.linear.content_weight=null", "teacher.linear.rank=20", "teacher.linear.trials=12")
    manifest, vectors = read_manifest(str(folder / "teacher"), "teacher"), read_revision(str(folder / "teacher"), 0).vectors
    linear = manifest["linear"]
    assert {"content_weight", "preparation"} < {*linear["chosen"]}
    assert linear["trials"] == 12
    added = linear["settings"]["content_weight"] > 0
    assert (vectors.user.shape[1] > 20) == added == ("modality_weights" in linear["settings"])
    assert [m for m, _ in manifest["modalities"]] == list(dataset.modalities)
    assert vectors.modal_item == {}


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("teacher", ("teacher.kind=ease", "teacher.linear.content_weight=0.2")),
        ("teacher.components.ease", ("teacher.kind=ensemble", "teacher.components={ease: {linear: {content_weight: 0.2}}}")),
    ],
)
def test_a_content_score_without_modalities_is_refused(tmp_path, tiny_settings, where, words):
    with pytest.raises(InputError, match=rf"{where}\.linear\.content_weight=0\.2 adds a content score, and the dataset has no modality"):
        run_verb("pipeline", tiny_settings(tmp_path / "run", *BY_SCORES, LOCAL, "source.modalities={}", *words))
    assert not (tmp_path / "run" / "training").exists()


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [("ease", ()), ("ease", ("teacher.linear.content_weight=0.2",)), ("content", ("student.warm_start=true",)), ("polynomial", ())],
)
def test_a_pipeline_distils_from_it(tmp_path, tiny_settings, kind, overrides):
    """All verbs, with the plan, and the same command again, which has nothing to do."""
    settings = tiny_settings(tmp_path / "run", *BY_SCORES, f"teacher.kind={kind}", LOCAL, "distill.score_weight=1", *overrides)
    run_verb("pipeline", settings)
    rows = [json.loads(line) for line in (tmp_path / "run" / "training" / "student" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss/score"] < rows[0]["loss/score"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["teacher"]["test"]["recall@20"] > 0
    assert not (tmp_path / "run" / "training" / "teacher" / "metrics.jsonl").exists()  # no epoch
    before = (tmp_path / "run" / "results.json").stat().st_mtime_ns
    run_verb("train-teacher", settings)
    assert (tmp_path / "run" / "results.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(("kind", "given"), [("spectral", "teacher.linear.filter=ideal"), ("polynomial", "teacher.linear.degree=3")])
def test_it_is_fitted_over_sharded_rows(tmp_path, tiny_settings, fit, capsys, kind, given):
    """A whole pipeline in the sampled engine; the artifact says and has what the full engine's does."""
    words = (*BY_SCORES, f"teacher.kind={kind}", LOCAL, *GIVEN, given)
    whole, _ = fit(kind, *GIVEN, given, name="whole")
    sharded = tmp_path / "sharded"
    run_verb("pipeline", tiny_settings(sharded, *words, "cluster.engine=sampled", "distill.score_weight=1"))
    assert f"[teacher] {kind} fitted in " in capsys.readouterr().out
    one, two = (read_manifest(f"{folder}/teacher", "teacher") for folder in (whole, sharded))
    assert {name: one[name] for name in ("linear", "num_parameters", "best_epoch")} == {
        name: two[name] for name in ("linear", "num_parameters", "best_epoch")
    }
    one, two = (read_revision(f"{folder}/teacher", 0).vectors for folder in (whole, sharded))
    scores = one.user @ one.item.T
    torch.testing.assert_close(two.user @ two.item.T, scores, atol=1e-5 * float(scores.abs().max()), rtol=0)


def test_what_it_cannot_do_is_refused_before_work(tmp_path, tiny_settings, monkeypatch):
    def refused(message, *words):
        with pytest.raises(InputError, match=message):
            run_verb("pipeline", tiny_settings(tmp_path / "run", *words))
        assert not (tmp_path / "run" / "dataset").exists()

    plain = ("teacher.kind=ease", "teacher.hidden=[]")
    refused(r"teacher\.kind=ease is trained by the full engine alone", *plain, "cluster.engine=sampled")
    refused(r"teacher\.kind=spectral, where teacher\.linear\.rank, teacher\.linear\.output_exponent are not given but chosen, is trained",
            "teacher.kind=spectral", *BY_SCORES, *GIVEN[:2], "teacher.linear.filter=ideal", "cluster.engine=sampled")  # fmt: skip
    refused(r"filter=neighbourhood is trained by the full engine alone, and not with cluster\.engine=sampled; set cluster\.engine=full",
            "teacher.kind=spectral", *BY_SCORES, *GIVEN, "teacher.linear.filter=neighbourhood", "cluster.engine=sampled")  # fmt: skip
    refused(r"power=0\.7 is trained by the full engine alone", "teacher.kind=polynomial", *BY_SCORES, *GIVEN, "teacher.linear.degree=2",
            "teacher.linear.power=0.7", "cluster.engine=sampled")  # fmt: skip
    refused(r"content_weight other than 0 is trained by the full engine alone", "teacher.kind=polynomial", *BY_SCORES, *GIVEN,
            "teacher.linear.degree=2", "teacher.linear.content_weight=1", "cluster.engine=sampled")  # fmt: skip
    refused(r"micro_batches=2 has no meaning with teacher\.kind=spectral, which is not trained in steps",
            "teacher.kind=spectral", *BY_SCORES, *GIVEN, "teacher.linear.filter=ideal", "cluster.micro_batches=2")  # fmt: skip
    refused(r"a ease, which has no vectors by modality for distill\.list_weight=0\.5", *plain)
    refused(r"teacher\.linear\.shrink=3\.0 is not read by teacher\.kind=ease: it reads rank, user_exponent, ridge, dropout, "
            "content_weight, preparation, modality_weights, trials, memory_mib",
            *plain, "teacher.linear.shrink=3")  # fmt: skip
    refused(r"teacher\.linear\.rank=3 is not read by teacher\.kind=promptmm: it is no linear model", "teacher.linear.rank=3")
    refused(r"teacher\.linear\.ridge=0: ", *plain, "teacher.linear.ridge=0")
    refused(r"filter_weight=2\.0 has no meaning with teacher\.linear\.filter=ideal",
            "teacher.kind=spectral", *BY_SCORES, "teacher.linear.filter=ideal", "teacher.linear.filter_weight=2")  # fmt: skip
    refused(
        r"neighbours=9 has no meaning with teacher\.linear\.power=1", "teacher.kind=polynomial", *BY_SCORES, "teacher.linear.neighbours=9"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(r"pip install 'promptmm\[ials\]'", "teacher.kind=ials", *BY_SCORES)


def test_a_linear_model_of_ones_own(fork_run, tiny_settings, tmp_path, monkeypatch):
    """A class in a module of the working folder; it is fitted and searched like those that ship, and claims nothing that it is not."""
    name = f"own_linear_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = fork_run("run")
    settings, dataset = tiny_settings(folder, f"teacher.kind={name}:Walks", LOCAL, *BY_SCORES), open_dataset(f"{folder}/dataset")
    LocalExecutor(settings.cluster, settings.dir, dataset).run(teacher_job(settings, dataset))
    assert read_manifest(str(folder / "teacher"), "teacher")["linear"]["settings"].keys() == {"rank", "user_exponent"}
    with pytest.raises(InputError, match=r"a core\.linear\.base\.LinearTeacher has no towers .* leave has_towers"):
        tiny_settings(folder, f"teacher.kind={name}:Towers", LOCAL, *BY_SCORES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "given", "engine"),
    [
        ("content", (), "full"),
        ("ease", (), "full"),
        ("rp3beta", ("teacher.linear.rank=0",), "full"),
        ("spectral", ("teacher.linear.filter=neighbourhood", "teacher.linear.neighbours=9", "teacher.linear.rank=4"), "full"),
        ("polynomial", (*GIVEN, "teacher.linear.degree=2"), "sampled"),
    ],
)
def test_two_workers_have_what_one_has(ray_cluster, fork_run, tiny_settings, fit, kind, given, engine):
    """Rank 0 fits (or both do, over sharded rows); both rank their share of the validation users, and both train the student."""
    alone, _ = fit(kind, *given, name="alone")
    together = fork_run("together")
    words = (*BY_SCORES, f"teacher.kind={kind}", *given, f"cluster.engine={engine}", "cluster.num_workers=2")
    for verb in ("train-teacher", "label", "distill"):
        run_verb(verb, tiny_settings(together, *words))
    one, two = (read_manifest(f"{folder}/teacher", "teacher") for folder in (alone, together))
    assert one["linear"] == two["linear"]
    train = open_dataset(f"{alone}/dataset").csr("train")
    one, two = (read_revision(f"{folder}/teacher", 0, None, lambda: train).vectors for folder in (alone, together))
    torch.testing.assert_close(one.user @ one.item.T, two.user @ two.item.T, atol=1e-3, rtol=0)
    for mine, theirs in zip(one.histories, two.histories, strict=True):
        torch.testing.assert_close(mine.rows(torch.arange(train.num_rows)), theirs.rows(torch.arange(train.num_rows)), atol=1e-5, rtol=0)


@pytest.mark.skipif(not LASTFM.exists(), reason=f"no data at {LASTFM}")
def test_lastfm(tmp_path):
    """Validation figures near those of a full search: spectral .430, EASE .416."""
    words = [*LASTFM_WORDS, f"run.dir={tmp_path}/run", LOCAL, "cluster.threads=1", *BY_SCORES]
    run_verb("prepare", load_settings(None, words))
    dataset = open_dataset(f"{tmp_path}/run/dataset").without("test")
    found = {}
    for kind, given in (("spectral", ("rank=64", "user_exponent=0")), ("ease", ("rank=64", "ridge=3"))):
        settings = load_settings(None, [*words, f"teacher.kind={kind}", *(f"teacher.linear.{x}" for x in given)])
        LocalExecutor(settings.cluster, settings.dir, dataset).run(teacher_job(settings, dataset))
        vectors = read_revision(f"{tmp_path}/run/teacher", 0).vectors
        found[kind] = evaluate(vectors.user, vectors.item, dataset.csr("validation"), dataset.csr("train"), [20])["recall@20"]
    assert found["spectral"] > 0.425
    assert found["ease"] > 0.41
