"""Ensembles as teachers: the artifact is the weighted sum, components are not trained twice, students learn from it."""

import json

import pytest
import torch
from promptmm.core.artifact import read_manifest, sealed
from promptmm.core.errors import InputError
from promptmm.distributed.artifacts.teacher import read_revision
from promptmm.graph_store.dataset import open_dataset
from promptmm.jobs.verbs import run_verb

COMPONENTS = "teacher.components={lightgcn: {dim: 6}, spectral: {linear: {rank: 16}}, content: {}}"
WORDS = ("cluster.executor=local", "teacher.kind=ensemble", "teacher.hidden=[]", "teacher.train.epochs=4", "teacher.train.batch_size=64")
POLYNOMIAL = "{linear: {rank: 12, degree: 2, user_exponent: 0.6, item_exponent: 0.4, output_exponent: 0.2}}"
OF_BOTH_ENGINES = f"teacher.components={{promptmm: {{}}, again: {{kind: promptmm, seed: 1}}, polynomial: {POLYNOMIAL}}}"
BY_SCORES = ("distill.list_weight=0", "distill.embedding_weight=0", "distill.score_weight=1")


def standard_scores(vectors):
    scores = vectors.user.double() @ vectors.item.double().T
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, correction=0, keepdim=True)


def vectors_of(url):
    return read_revision(str(url), 0).vectors


def test_the_artifact_is_the_weighted_sum(fork_run, tiny_settings):
    folder = fork_run("run")
    run_verb("train-teacher", tiny_settings(folder, *WORDS, COMPONENTS))
    manifest, dataset = read_manifest(str(folder / "teacher"), "teacher"), open_dataset(f"{folder}/dataset")
    weights = {name: facts["weight"] for name, facts in manifest["components"].items()}
    assert list(weights) == ["content", "lightgcn", "spectral"]  # manifests have sorted keys
    assert sum(weights.values()) == pytest.approx(1)
    seen = dataset.csr("train").degrees > 0
    expected = sum(w * standard_scores(vectors_of(folder / "components" / name / "teacher"))[seen] for name, w in weights.items() if w)
    own = vectors_of(folder / "teacher")
    scores = (own.user.double() @ own.item.double().T)[seen]
    torch.testing.assert_close(scores - scores.mean(1, keepdim=True), expected, atol=2e-4, rtol=0)
    assert not own.modal_item  # none of its components has vectors by modality


def test_fewer_columns_keep_the_closest_scores(fork_run, tiny_settings):
    folder = fork_run("run")
    run_verb("train-teacher", tiny_settings(folder, *WORDS, COMPONENTS))
    whole = vectors_of(folder / "teacher")
    cut = fork_run("cut", folder)
    run_verb("train-teacher", tiny_settings(cut, *WORDS, COMPONENTS, "teacher.ensemble_rank=5", "run.redo=train-teacher"))
    small = vectors_of(cut / "teacher")
    assert small.user.shape[1] == 5
    scores = whole.user.double() @ whole.item.double().T
    left, values, right = torch.linalg.svd(scores, full_matrices=False)
    best = (left[:, :5] * values[:5]) @ right[:5]
    torch.testing.assert_close(small.user.double() @ small.item.double().T, best, atol=1e-3, rtol=0)


def test_a_finished_component_is_not_trained_again(fork_run, tiny_settings, capfd, monkeypatch):
    """An interruption in the second component; the first one's files stay as they are."""
    from promptmm.distributed import run_job

    folder, fit = fork_run("run"), run_job._fit
    monkeypatch.setattr(run_job, "_fit", lambda *args: (_ for _ in ()).throw(RuntimeError("the power is gone")))
    with pytest.raises(RuntimeError, match="power"):
        run_verb("train-teacher", tiny_settings(folder, *WORDS, COMPONENTS))
    monkeypatch.setattr(run_job, "_fit", fit)
    before = (folder / "components/lightgcn/teacher/manifest.json").stat().st_mtime_ns
    capfd.readouterr()
    run_verb("train-teacher", tiny_settings(folder, *WORDS, COMPONENTS))
    said = capfd.readouterr().out
    assert "component spectral, 2 of 3" in said
    assert "component lightgcn" not in said
    assert (folder / "components/lightgcn/teacher/manifest.json").stat().st_mtime_ns == before


def test_a_temperature_can_be_that_of_the_best_component_before(fork_run, tiny_settings, capfd):
    folder = fork_run("run")
    taken = "teacher.components={soft: {kind: mf, temperature: 5.0}, sharp: {kind: mf, temperature: 0.2}, lightgcn: {temperature: null}}"
    run_verb("train-teacher", tiny_settings(folder, *WORDS, "teacher.loss=softmax", "teacher.train.learning_rate=0.05", taken))
    manifests = {name: read_manifest(f"{folder}/components/{name}/teacher", "teacher") for name in ("soft", "sharp", "lightgcn")}
    best = max("soft", "sharp", key=lambda name: manifests[name]["best_value"])
    temperature = {"soft": 5.0, "sharp": 0.2}[best]
    assert manifests["lightgcn"]["config"]["temperature"] == temperature
    assert f"component lightgcn, 3 of 3; temperature {temperature}" in capfd.readouterr().out
    history = [json.loads(line) for line in (folder / f"components/{best}/training/teacher/metrics.jsonl").read_text().splitlines()]
    assert manifests[best]["best_value"] == max(row["validation/recall@20"] for row in history)


def test_components_with_weight_0_show_a_temperature_alone(fork_run, tiny_settings, capfd):
    """They are trained, and are no part of the sum, whose weights validation chooses among the others."""
    folder, plain = fork_run("run"), fork_run("plain")
    soft, sharp = (f"{{kind: mf, weight: 0, temperature: {value}, train: {{epochs: 1}}}}" for value in (5.0, 0.2))
    others = "spectral: {linear: {rank: 8, trials: 1}}"
    shown = f"teacher.components={{soft: {soft}, sharp: {sharp}, lightgcn: {{temperature: null}}, {others}}}"
    run_verb("train-teacher", tiny_settings(folder, *WORDS, "teacher.train.epochs=2", "teacher.loss=softmax", shown))
    out, manifest = capfd.readouterr().out, read_manifest(f"{folder}/teacher", "teacher")
    values = {name: read_manifest(f"{folder}/components/{name}/teacher", "teacher")["best_value"] for name in ("soft", "sharp")}
    temperature = {"soft": 5.0, "sharp": 0.2}[max(values, key=values.get)]
    assert {name: manifest["components"][name] for name in values} == {name: {"weight": 0.0, "alone": values[name]} for name in values}
    assert set(manifest["component_digests"]) == {"lightgcn", "spectral"}
    assert f"component lightgcn, 3 of 4; temperature {temperature}" in out
    assert "teacher.train.epochs=1 ended training before it had converged" not in out
    without = f"teacher.components={{lightgcn: {{temperature: {temperature}}}, {others}}}"
    run_verb("train-teacher", tiny_settings(plain, *WORDS, "teacher.train.epochs=2", "teacher.loss=softmax", without))
    one, other = (vectors_of(each / "teacher") for each in (folder, plain))
    assert torch.equal(one.user, other.user)
    assert torch.equal(one.item, other.item)


def test_a_seed_sets_components_of_the_same_settings_apart(fork_run, tiny_settings):
    folder = fork_run("run")
    twins = "teacher.components={one: {kind: mf}, again: {kind: mf}, two: {kind: mf, seed: 2}}"
    run_verb("train-teacher", tiny_settings(folder, *WORDS, "teacher.train.epochs=1", "run.seed=4", twins))
    seeds = {name: read_manifest(f"{folder}/components/{name}/teacher", "teacher")["seed"] for name in ("one", "again", "two")}
    assert seeds == {"one": 4, "again": 4, "two": 2004}
    digests = read_manifest(f"{folder}/teacher", "teacher")["component_digests"]
    assert digests["one"] == digests["again"] != digests["two"]


@pytest.mark.parametrize("validated", [True, False])
def test_weights_may_be_given(fork_run, tiny_settings, capfd, validated):
    from promptmm.distributed.execution.local import LocalExecutor
    from promptmm.jobs.runs.worker_jobs import teacher_job

    folder = fork_run("run")
    components = "spectral: {weight: 3, linear: {rank: 8, trials: 1}}, mf: {weight: 1, train: {epochs: 1}}, ease: {weight: 0}"
    given = f"teacher.components={{{components}}}"
    settings, dataset = tiny_settings(folder, *WORDS, given), open_dataset(f"{folder}/dataset")
    dataset = dataset if validated else dataset.without("validation")
    LocalExecutor(settings.cluster, settings.dir, dataset).run(teacher_job(settings, dataset))
    manifest = read_manifest(str(folder / "teacher"), "teacher")
    assert {name: facts["weight"] for name, facts in manifest["components"].items()} == {"spectral": 0.75, "mf": 0.25, "ease": 0.0}
    assert ("without" in manifest["components"]["mf"]) == validated
    assert (manifest["best_value"] is not None) == validated
    assert "spectral 0.75" in capfd.readouterr().out


def test_teachers_of_other_runs_and_vectors_by_modality(fork_run, tiny_settings):
    """The first component with vectors by modality gives the ensemble its own; a student learns from all of it."""
    other, folder = fork_run("other"), fork_run("run")
    words = ("cluster.executor=local", "teacher.train.epochs=2")
    run_verb("train-teacher", tiny_settings(other, *words))
    taken = f"teacher.components={{mine: {{artifact: {other}/teacher}}, ease: {{}}, vbpr: {{}}}}"
    settings = tiny_settings(folder, *WORDS, taken, "distill.score_weight=1")
    for verb in ("train-teacher", "label", "distill", "evaluate"):
        run_verb(verb, settings)
    own, theirs = vectors_of(folder / "teacher"), vectors_of(other / "teacher")
    assert {m: x.tolist() for m, x in own.modal_item.items()} == {m: x.tolist() for m, x in theirs.modal_item.items()}
    manifest = read_manifest(str(folder / "teacher"), "teacher")
    assert set(manifest["component_digests"]) == {"mine", "ease", "vbpr"}
    assert [name for name, _ in manifest["modalities"]] == list(theirs.modal_item)
    rows = [json.loads(line) for line in (folder / "training/student/metrics.jsonl").read_text().splitlines()]
    assert {"loss/list", "loss/embedding", "loss/score"} <= rows[0].keys()
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_without_a_validation_split_all_weigh_alike(fork_run, tiny_settings, capfd):
    from promptmm.distributed.execution.local import LocalExecutor
    from promptmm.jobs.runs.worker_jobs import teacher_job

    folder = fork_run("run")
    settings, dataset = tiny_settings(folder, *WORDS, COMPONENTS), open_dataset(f"{folder}/dataset").without("validation")
    LocalExecutor(settings.cluster, settings.dir, dataset).run(teacher_job(settings, dataset))
    manifest = read_manifest(str(folder / "teacher"), "teacher")
    assert [facts["weight"] for facts in manifest["components"].values()] == pytest.approx([1 / 3] * 3)
    assert manifest["selected_by"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teacher.components={}"], "names no component"),
        (["teacher.components={ease: {rank: 3}}"], r"teacher\.components\.ease: unknown setting rank"),
        (["teacher.components={ease: {linear: {rank: -1}}}"], r"teacher\.components\.ease\.linear\.rank=-1: expected at least 0"),
        (["teacher.components={ease: {linear: {trails: 3}}}"], r"teacher\.components\.ease\.linear=.*trials"),
        (["teacher.components={nobody: {}}"], r"teacher\.components\.nobody\.kind='nobody': no such teacher"),
        (
            ["teacher.components={mf: {linear: {rank: 3}}}"],
            r"components\.mf\.linear\.rank=3 is not read by teacher\.components\.mf\.kind=mf",
        ),
        (
            ["teacher.components={ease: {linear: {rank: 0}}}"],
            r"^teacher\.components\.ease\.linear\.rank=0 .* teacher\.components\.ease\.kind$",
        ),
        (["teacher.components={mf: {dim: 0}}"], r"^teacher\.components\.mf\.dim=0: expected at least 1"),
        (["teacher.components={mf: {train: {epochs: -1}}}"], r"^teacher\.components\.mf\.train\.epochs=-1: expected at least 0"),
        (["teacher.components={mf: {dim: wide}}"], r"^teacher\.components\.mf\.dim='wide': Input should be a valid integer"),
        (
            ["teacher.components={mf: {l2: much}, ease: {linear: {ridge: [1]}}, lightgcn: {train: {epochs: 2.5}}}"],
            r"^teacher\.components\.mf\.l2='much': .*number.*; teacher\.components\.ease\.linear\.ridge=\[1\]: .*number.*; "
            r"teacher\.components\.lightgcn\.train\.epochs=2\.5: .* valid integer",
        ),
        (
            ["teacher.components={vbpr: {}}", "teacher.loss=softmax"],
            r"^teacher\.components\.vbpr: teacher\.loss=softmax: .* or another teacher\.components\.vbpr\.kind$",
        ),
        (["teacher.components={vbpr: {loss: softmax}}"], r"^teacher\.components\.vbpr\.loss=softmax: the vbpr teacher trains with bpr"),
        (["teacher.components={one: {kind: 'my.teacher.linear:Mine'}}"], r"^teacher\.components\.one\.kind=.*my\.teacher\.linear:Mine"),
        (
            ["teacher.components={one: {kind: item_knn, linear: {rank: 0, content_weight: 0.1}}}"],
            r"^teacher\.components\.one\.linear\.rank=0 .*one\.linear\.content_weight=0, .* of teacher\.kind=ensemble beside",
        ),
        (["teacher.components={one: {kind: ensemble}}"], "a component cannot be an ensemble"),
        (["teacher.components={one: {artifact: x, dim: 3}}"], "has no settings but its weight"),
        (["teacher.components={ease: {weight: 1}, mf: {}}"], r"teacher\.components\.mf has no weight, and ease has one"),
        (["teacher.components={ease: {weight: heavy}}"], r"ease\.weight='heavy': expected a number of at least 0"),
        (["teacher.components={ease: {weight: -1}}"], r"ease\.weight=-1: expected a number of at least 0"),
        (["teacher.components={ease: {weight: 0}}"], "every weight is 0"),
        (["teacher.components={ease: {weight: 0}, mf: {}}"], r"ease has the weight 0.* it would be trained for nothing"),
        (["teacher.components={ease: {weight: 0}, mf: {weight: 1}, lightgcn: {}}"], "lightgcn has no weight, and ease has one"),
        (["teacher.components={mf: {seed: 1.5}}"], r"mf\.seed=1\.5: expected a whole number of at least 0"),
        (["teacher.components={one: {artifact: x, seed: 1}}"], "has no settings but its weight"),
        (["teacher.components={../x: {kind: mf}}"], "names a folder"),
        (["teacher.components={spectral: {}, mf: {temperature: null}}"], r"components\.mf\.temperature: null takes .* there is none"),
        (
            ["cluster.engine=sampled"],
            r"teacher\.components\.spectral\.kind=spectral.* not given but chosen, is trained by the full engine alone",
        ),
        (
            ["cluster.engine=sampled", "teacher.components={mf: {}, promptmm: {}}"],
            r"teacher\.components\.mf\.kind=mf is trained by the full engine alone",
        ),
        (
            ["cluster.engine=sampled", "teacher.components={promptmm: {}, polynomial: {}}"],
            r"^teacher\.components\.polynomial\.kind=polynomial.*polynomial\.linear\.\w+.* not given but.* set cluster\.engine=full",
        ),
        (
            ["cluster.micro_batches=2", f"teacher.components={{polynomial: {POLYNOMIAL}}}"],
            "cluster.micro_batches=2 has no meaning with teacher.kind=ensemble, none of whose components is trained in steps",
        ),
        (["cluster.zero_stage=1", "teacher.components={mf: {}, ease: {}}"], "teacher.kind=ensemble has no reduction towers"),
        (
            ["teacher.components={mf: {}, promptmm: {reduction_dtype: bfloat16}}"],
            r"teacher\.components\.promptmm\.reduction_dtype=bfloat16 keeps float32 masters",
        ),
        (["cluster.micro_batches=99", "teacher.components={promptmm: {train: {batch_size: 64}}}"], r"promptmm\.train\.batch_size=64"),
        (["distill.rounds=2"], "teacher.kind=ensemble has no prompt to tune"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, tiny_settings, words, message):
    with pytest.raises(InputError, match=message):
        tiny_settings(tmp_path, "teacher.hidden=[]", "teacher.kind=ensemble", *words)


def test_values_of_components_have_the_types_of_their_settings(tmp_path, tiny_settings):
    """YAML reads 1e-3 as text, here as in any setting."""
    settings = tiny_settings(
        tmp_path, *WORDS, "teacher.components={mf: {l2: 1e-3, train: {learning_rate: 1e-2}}, ease: {linear: {ridge: 1e1, rank: 3}}}"
    )
    assert settings.teacher.components == {
        "mf": {"l2": 0.001, "train": {"learning_rate": 0.01}},
        "ease": {"linear": {"ridge": 10.0, "rank": 3}},
    }


def test_what_a_component_cannot_fit_names_its_own_setting(fork_run, tiny_settings):
    settings = tiny_settings(fork_run("run"), *WORDS, "teacher.components={mine: {kind: content, linear: {modality_weights: {smell: 1}}}}")
    with pytest.raises(InputError, match=r"^teacher\.components\.mine\.linear\.modality_weights names smell, and the catalog"):
        run_verb("train-teacher", settings)


def test_a_teacher_of_another_dataset_is_refused(fork_run, tiny_settings):
    other, folder = fork_run("other"), fork_run("run")
    run_verb("train-teacher", tiny_settings(other, *WORDS, "teacher.kind=mf"))
    path = other / "teacher" / "manifest.json"
    path.write_text(json.dumps(sealed(json.loads(path.read_text().replace('"dataset": "', '"dataset": "0')))))
    with pytest.raises(InputError, match="trained on another dataset"):
        run_verb("train-teacher", tiny_settings(folder, *WORDS, f"teacher.components={{mine: {{artifact: {other}/teacher}}}}"))


def close(one, other, tolerance):
    """Compares the scores of two ensembles, each user's without what is common to all items."""
    scores = [x.user.double() @ x.item.double().T for x in map(vectors_of, (one / "teacher", other / "teacher"))]
    torch.testing.assert_close(*(x - x.mean(1, keepdim=True) for x in scores), atol=tolerance, rtol=0)


def test_the_sampled_engine_makes_the_same_ensemble(fork_run, tiny_settings, capfd):
    """With all neighbours: components that are trained and fitted over the shards, weights, sum, and vectors by modality."""
    words, folders = (*WORDS, "teacher.train.epochs=2", OF_BOTH_ENGINES), {}
    for engine in ("full", "sampled"):
        folders[engine] = fork_run(engine)
        settings = tiny_settings(folders[engine], *words, f"cluster.engine={engine}", "sampling.fan_outs=[-1]")
        run_verb("train-teacher", settings)
    said = capfd.readouterr().out
    assert said.count("component again, 2 of 3") == 2
    one, two = (read_manifest(f"{folder}/teacher", "teacher") for folder in folders.values())
    weights = [{name: facts["weight"] for name, facts in each["components"].items()} for each in (one, two)]
    assert weights[0] == weights[1]
    assert two["modalities"] == one["modalities"] != []
    assert two["best_value"] == pytest.approx(one["best_value"])
    close(*folders.values(), 2e-3)  # Adam turns differences of rounding into larger ones
    run_verb("train-teacher", settings)  # what is finished is not trained again
    assert "component" not in capfd.readouterr().out


def test_towers_of_components_are_set_as_those_of_a_teacher(fork_run, tiny_settings):
    folder = fork_run("run")
    components = "teacher.components={promptmm: {hidden: [5]}, mf: {}}"
    run_verb("train-teacher", tiny_settings(folder, *WORDS, "teacher.train.epochs=1", components, "cluster.checkpoint_activations=true"))
    assert read_manifest(f"{folder}/components/promptmm/teacher", "teacher")["config"]["hidden"] == [5]


@pytest.mark.slow
def test_two_workers_of_the_sampled_engine_make_the_ensemble_of_one(ray_cluster, fork_run, tiny_settings):
    """Every component has graph servers of its own, and the towers' optimizer is sharded."""
    words = (*WORDS[1:], OF_BOTH_ENGINES, "teacher.train.epochs=2", "cluster.engine=sampled", "sampling.fan_outs=[-1]")
    alone, together = fork_run("alone"), fork_run("together")
    run_verb("train-teacher", tiny_settings(alone, *words, "cluster.executor=local"))
    run_verb("train-teacher", tiny_settings(together, *words, "cluster.num_workers=2", "cluster.zero_stage=1"))
    close(alone, together, 5e-2)


@pytest.mark.slow
def test_two_workers_make_the_same_ensemble(ray_cluster, fork_run, tiny_settings):
    """Components that are trained and fitted on one set of graph servers, weights that rank 0 chooses, shards of both."""
    words = (*WORDS[1:], "teacher.components={promptmm: {}, spectral: {}, content: {}}", "teacher.train.epochs=2", *BY_SCORES)
    alone, together = fork_run("alone"), fork_run("together")
    run_verb("train-teacher", tiny_settings(alone, *words, "cluster.executor=local"))
    run_verb("train-teacher", tiny_settings(together, *words, "cluster.num_workers=2"))
    one, two = (read_manifest(str(folder / "teacher"), "teacher")["components"] for folder in (alone, together))
    assert {name: facts["weight"] for name, facts in two.items()} == {name: facts["weight"] for name, facts in one.items()}
    scores = [vectors_of(folder / "teacher") for folder in (alone, together)]
    of_both = [x.user.double() @ x.item.double().T for x in scores]
    torch.testing.assert_close(*of_both, atol=5e-2, rtol=0)
