"""Students from materialised and streamed labels, on one worker and two, beside a resident teacher, in rounds, and alone."""

import json

import pytest
import torch
from promptmm.core.artifact import manifest_digest, read_manifest
from promptmm.distributed.artifacts.teacher import read_weights
from promptmm.jobs.verbs import run_verb
from safetensors.torch import load_file

LOCAL = "cluster.executor=local"


def student(folder):
    return load_file(str(folder / "training" / "student" / "model" / "vectors.safetensors"))


def rows(folder):
    return [json.loads(line) for line in (folder / "training" / "student" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def reference(taught_run, tiny_settings, tmp_path_factory):
    """The student of one worker in this process, from materialised labels."""
    import shutil

    folder = tmp_path_factory.mktemp("reference") / "run"
    shutil.copytree(taught_run, folder)
    run_verb("distill", tiny_settings(folder, LOCAL))
    return folder


def test_all_terms_are_there_and_fall(reference):
    history = rows(reference)
    assert {"loss/bpr", "loss/l2", "loss/pair", "loss/list", "loss/embedding"} <= set(history[0])
    assert history[-1]["loss"] < history[0]["loss"]
    assert [row["revision"] for row in history] == [0, 0, 0]


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_streamed_labels_give_the_same_student_bit_for_bit(request, reference, fork_run, taught_run, tiny_settings, executor):
    if executor == "ray":
        request.getfixturevalue("ray_cluster")
    folder = fork_run("streamed", taught_run)
    run_verb("distill", tiny_settings(folder, "labels.mode=streamed", f"cluster.executor={executor}"))
    expected, found = student(reference), student(folder)
    assert torch.equal(expected["user"], found["user"])
    assert torch.equal(expected["item"], found["item"])


@pytest.mark.parametrize("mode", [pytest.param("materialised", marks=pytest.mark.slow), "streamed"])
def test_two_workers_give_the_same_curve(ray_cluster, reference, fork_run, taught_run, tiny_settings, mode):
    folder = fork_run("two", taught_run)
    run_verb("distill", tiny_settings(folder, "cluster.num_workers=2", f"labels.mode={mode}"))
    assert [r["loss"] for r in rows(folder)] == pytest.approx([r["loss"] for r in rows(reference)], rel=2e-5)
    for name, value in student(folder).items():
        expected = student(reference)[name]
        assert float((value - expected).abs().max()) < 1e-3 * float(expected.abs().max())


def test_inline_tunes_the_prompt(ray_cluster, fork_run, taught_run, tiny_settings):
    folder = fork_run("inline", taught_run)
    run_verb("distill", tiny_settings(folder, "distill.regime=inline", "cluster.num_workers=2"))
    assert "loss/anchor" in rows(folder)[0]
    before, after = (load_file(str(folder / "teacher" / f"rev-{r}" / "prompt.safetensors")) for r in (0, 1))
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert read_manifest(str(folder / "teacher" / "rev-1"), "teacher-vectors")["regime"] == "inline"


def test_rounds_tune_the_prompt_between_labels(fork_run, taught_run, tiny_settings):
    folder = fork_run("rounds", taught_run)
    run_verb("distill", tiny_settings(folder, "distill.rounds=2", "distill.tuning_steps=4", "student.train.epochs=4", LOCAL))
    assert [row["revision"] for row in rows(folder)] == [0, 0, 1, 1]
    assert read_manifest(str(folder / "labels" / "rev-1"), "labels")["revision"] == 1
    assert not (folder / "teacher" / "rev-2").exists()  # no tuning follows the last round
    one, two = (load_file(str(folder / "teacher" / f"rev-{r}" / "item-00000.safetensors")) for r in (0, 1))
    assert not torch.equal(one["modal.visual"], two["modal.visual"])
    ids, _ = read_weights(str(folder / "teacher"))
    assert ids["ids.user"].shape == (150, 8)


TWO_ROUNDS = ["distill.rounds=2", "distill.tuning_steps=3", "student.train.epochs=2", "cluster.engine=sampled", "sampling.fan_outs=[4, 3]"]


@pytest.fixture(scope="module")
def two_rounds_over_shards(taught_run, tiny_settings, tmp_path_factory):
    """A student of two rounds of the sampled engine on one worker in this process, with decoders and a spectral start."""
    import shutil

    folder = tmp_path_factory.mktemp("rounds") / "run"
    shutil.copytree(taught_run, folder)
    run_verb("distill", tiny_settings(folder, *TWO_ROUNDS, "student.start=spectral", "distill.decoder=true", LOCAL))
    return folder


def test_rounds_over_shards_tune_the_prompt_too(two_rounds_over_shards):
    folder = two_rounds_over_shards
    assert [row["revision"] for row in rows(folder)] == [0, 1]
    before, after = (load_file(str(folder / "teacher" / f"rev-{r}" / "prompt.safetensors")) for r in (0, 1))
    assert all(not torch.equal(before[name], after[name]) for name in before)
    manifests = [read_manifest(str(folder / "teacher" / f"rev-{r}"), "teacher-vectors") for r in (0, 1)]
    assert manifests[1]["tuned_from"] == manifest_digest(manifests[0])
    assert manifests[1]["tuned_after_epoch"] == 1


@pytest.mark.slow
def test_two_workers_tune_over_shards_alike(ray_cluster, two_rounds_over_shards, fork_run, taught_run, tiny_settings):
    """On DGL's servers, whose rows both workers share: the prompt to a hundredth of a step, and the student's losses."""
    folder, words = fork_run("two", taught_run), ["student.start=spectral", "distill.decoder=true", "cluster.num_workers=2"]
    run_verb("distill", tiny_settings(folder, *TWO_ROUNDS, *words))
    assert [r["loss"] for r in rows(folder)] == pytest.approx([r["loss"] for r in rows(two_rounds_over_shards)], rel=1e-4)
    found, expected = (load_file(str(each / "teacher" / "rev-1" / "prompt.safetensors")) for each in (folder, two_rounds_over_shards))
    for name, weights in found.items():
        torch.testing.assert_close(weights, expected[name], rtol=0, atol=1e-5)


def test_student_alone_needs_no_teacher(fork_run, tiny_settings):
    folder = fork_run("alone")
    run_verb("distill", tiny_settings(folder, "distill.use_teacher=false", "student.kind=mf", LOCAL))
    assert not (folder / "teacher").exists()
    assert set(rows(folder)[0]) >= {"loss/bpr", "loss/l2"}
    assert "loss/pair" not in rows(folder)[0]


@pytest.mark.parametrize(
    "overrides", [["student.kind=gcn"], ["student.kind=mlp", "student.layers=1"], ["student.dim=6", "student.warm_start=true"]]
)
def test_other_students_distil_too(fork_run, taught_run, tiny_settings, overrides):
    folder = fork_run("other", taught_run)
    settings = tiny_settings(folder, *overrides, LOCAL)
    run_verb("distill", settings)
    losses = [row["loss"] for row in rows(folder)]
    assert losses[2] < losses[1] < losses[0]
    assert student(folder)["user"].shape == (150, settings.student.dim)
