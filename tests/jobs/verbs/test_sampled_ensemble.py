"""Ensembles whose components are trained over the sharded graph, from the source to the refitted bundle."""

import json

import pytest
from promptmm.jobs.settings import load_settings

SMALL = (
    "source.format=synthetic", "source.synthetic_num_users=120", "source.synthetic_num_items=80",
    "source.synthetic_interactions_per_user=12", "source.synthetic_dims={visual: 16, text: 8}", "cluster.executor=local",
    "cluster.threads=1", "teacher.dim=8", "teacher.train.epochs=2", "student.dim=8", "student.train.epochs=3", "labels.epochs=2",
    "distill.top_depth=20",
)  # fmt: skip
POLYNOMIAL = "{linear: {rank: 12, degree: 2, user_exponent: 0.6, item_exponent: 0.4, output_exponent: 0.2}}"
SAMPLED = ("teacher.kind=ensemble", "cluster.engine=sampled", "sampling.fan_outs=[5]")
MIXED = f"teacher.components={{promptmm: {{}}, again: {{kind: promptmm, seed: 1}}, polynomial: {POLYNOMIAL}}}"
TOWERS = ("teacher.hidden=[6]", "cluster.checkpoint_activations=true", "cluster.micro_batches=2")


def manifest_of(folder):
    return json.loads((folder / "teacher" / "manifest.json").read_text())


def test_from_the_source_to_the_refitted_bundle(command, tmp_path):
    """Settings of towers and of steps are read by the components that have them; the others do without."""
    ended = command("pipeline", "lists", *SMALL, *SAMPLED, *TOWERS, MIXED, f"run.dir={tmp_path}/run")
    assert ended.code == 0, ended.err
    run = tmp_path / "run"
    assert json.loads((run / "components/again/teacher/manifest.json").read_text())["config"]["hidden"] == [6]
    assert (run / "student" / "manifest.json").exists()
    again = command("refit", f"run.dir={run}")
    assert again.code == 0, again.err
    weights = {name: facts["weight"] for name, facts in manifest_of(run)["components"].items() if facts["weight"]}
    assert {name: facts["weight"] for name, facts in manifest_of(run / "refit")["components"].items()} == pytest.approx(weights)
    made = json.loads((run / "refit/stages/train-teacher.json").read_text())["made_with"]
    assert made["engine"] == {"engine": "sampled", "fan_outs": [5]}


def test_a_component_with_towers_that_got_no_weight_is_left_out_of_the_refit(command, tmp_path):
    components = f"teacher.components={{promptmm: {{weight: 0}}, polynomial: {POLYNOMIAL[:-1]}, weight: 1}}}}"
    run = tmp_path / "run"
    assert command("pipeline", "lists", *SMALL, *SAMPLED, *TOWERS, components, f"run.dir={run}").code == 0
    again = command("refit", f"run.dir={run}")
    assert again.code == 0, again.err
    assert list(manifest_of(run / "refit")["components"]) == ["polynomial"]


def test_tune_adds_trained_teachers_up_whatever_their_towers_are(command, tmp_path, monkeypatch):
    """The trial of several teachers together reads artifacts alone, which train nothing and read no setting of towers."""
    from promptmm.jobs.tuning.search import _with_components

    words = ("teacher.kind=ensemble", "teacher.hidden=[5]", "cluster.checkpoint_activations=true", "cluster.engine=full")
    settings = load_settings("lists", [*SMALL, *words, "teacher.components={promptmm: {}, spectral: {}}"])
    together = _with_components(settings, {name: {"artifact": f"{tmp_path}/{name}"} for name in ("promptmm", "spectral")})
    assert together.teacher.components == {name: {"artifact": f"{tmp_path}/{name}"} for name in ("promptmm", "spectral")}
    assert not together.cluster.checkpoint_activations
    assert _with_components(settings, {}) == settings


@pytest.mark.parametrize("word", ["teacher.hidden=[6]", "cluster.micro_batches=2", "sampling.exclude_seed_edges=true"])
def test_a_plan_takes_what_training_takes(command, tmp_path, word):
    components = f"teacher.components={{polynomial: {POLYNOMIAL}, promptmm: {{}}}}"
    assert command("prepare", "lists", *SMALL, f"run.dir={tmp_path}").code == 0
    ended = command("plan", "lists", *SMALL, *SAMPLED, word, components, f"run.dir={tmp_path}")
    assert ended.code == 0, ended.err
    assert "graph server (train-teacher)" in ended.out


def test_teachers_of_other_runs_are_checked_before_anything_is_trained(command, tmp_path):
    def ended_with(artifact, *words):
        components = f"teacher.components={{promptmm: {{}}, other: {{artifact: {artifact}}}}}"
        ended = command("pipeline", "lists", *SMALL, *SAMPLED, components, f"run.dir={tmp_path}/run", *words)
        assert ended.code == 2
        assert not (tmp_path / "run/components").exists()
        return ended.err

    by_histories = ("teacher.kind=item_knn", "teacher.linear.rank=0", "teacher.linear.trials=1", f"run.dir={tmp_path}/knn")
    other = (*SMALL[:-1], "source.synthetic_num_users=121", "teacher.kind=mf", f"run.dir={tmp_path}/mf")
    for words in ((*SMALL, *by_histories), other):
        for verb in ("prepare", "train-teacher"):
            assert command(verb, "lists", *words).code == 0
    assert f"{tmp_path}/nowhere" in ended_with(f"{tmp_path}/nowhere")
    assert "trained on another dataset" in ended_with(f"{tmp_path}/mf/teacher")
    refused = "warm_start=true with a teacher that scores histories with similarities of items is computed by the full engine alone"
    assert refused in ended_with(f"{tmp_path}/knn/teacher", "student.warm_start=true")
