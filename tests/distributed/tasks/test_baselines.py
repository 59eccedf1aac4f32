"""Baselines as teachers: they train, resume, spread over workers, and are distilled from."""

import dataclasses
import json

import pytest
import torch
from promptmm.core.artifact import read_manifest
from promptmm.core.errors import InputError
from promptmm.core.kinds import TEACHERS
from promptmm.core.ranking import evaluate
from promptmm.distributed.artifacts.teacher import read_revision
from promptmm.distributed.execution.local import LocalExecutor
from promptmm.graph_store.dataset import open_dataset
from promptmm.jobs.runs.worker_jobs import student_job, teacher_job
from promptmm.jobs.verbs import run_verb

OTHERS = ("has_towers", "is_fitted", "is_ensemble", "is_imported")
KINDS = tuple(name for name in TEACHERS.names if not any(getattr(TEACHERS.get(name), what) for what in OTHERS))
PLAIN = ("teacher.hidden=[]", "teacher.train.batch_size=64", "teacher.train.epochs=6", "teacher.init_scale=0.1")
WITHOUT_MODALITIES = ("distill.list_weight=0", "distill.embedding_weight=0")


@pytest.fixture
def settings_of(tiny_settings):
    """Settings of a kind of teacher in a folder."""

    def build(folder, kind, *overrides):
        return tiny_settings(folder, *PLAIN, f"teacher.kind={kind}", *overrides)

    return build


def train(settings, epochs=None):
    """`train-teacher` in this process, without Ray."""
    dataset = open_dataset(f"{settings.dir}/dataset")
    job = teacher_job(settings, dataset)
    if epochs is not None:
        train = dataclasses.replace(job.config.train, epochs=epochs, checkpoint_every=epochs)
        job = dataclasses.replace(job, config=dataclasses.replace(job.config, train=train))
    LocalExecutor(settings.cluster, settings.dir, dataset).run(job)
    return dataset


def history(folder, stage="teacher"):
    return [json.loads(line) for line in (folder / "training" / stage / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns(fork_run, settings_of, kind):
    folder = fork_run(kind)
    dataset = train(settings_of(folder, kind))
    rows, manifest = history(folder), read_manifest(str(folder / "teacher"), "teacher")
    assert rows[-1]["loss"] < rows[1]["loss"] < rows[0]["loss"]
    vectors = read_revision(str(folder / "teacher"), 0).vectors
    held_out, seen = dataset.csr("validation"), dataset.csr("train")
    found = evaluate(vectors.user, vectors.item, held_out, seen, [20])["recall@20"]
    assert found == pytest.approx(max(row["validation/recall@20"] for row in rows), abs=0.01)
    random = [torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (dataset.num_users, dataset.num_items)]
    assert found > 1.15 * evaluate(*random, held_out, seen, [20])["recall@20"]
    by_modality = list(dataset.modalities) if kind in ("vbpr", "lattice") else []
    assert list(vectors.modal_item) == list(vectors.modal_user) == [m for m, _ in manifest["modalities"]] == by_modality
    assert all(x.shape == (dataset.num_items, 8) for x in vectors.modal_item.values())
    assert vectors.prompt_item is None
    tables = (dataset.num_users + dataset.num_items) * 8
    dims = sum(info.dim for info in dataset.modalities.values())
    expected = {"mf": 0, "lightgcn": 0, "vbpr": dataset.num_users * 24 + dataset.num_items + dims * 9, "lattice": dims * 8 + 3 * 8 + 3}
    assert manifest["num_parameters"] == tables + expected[kind]


@pytest.mark.parametrize("kind", ["vbpr", "lattice"])
def test_a_resumed_run_is_the_uninterrupted_one(fork_run, settings_of, kind):
    """Bit for bit, item graphs included: λ = .5 lets the learnt one matter."""
    whole, halted = fork_run("whole"), fork_run("halted")
    train(settings_of(whole, kind, "teacher.item_graph_blend=0.5"))
    train(settings_of(halted, kind, "teacher.item_graph_blend=0.5"), epochs=3)
    train(settings_of(halted, kind, "teacher.item_graph_blend=0.5"))
    assert [row["loss"] for row in history(halted)] == [row["loss"] for row in history(whole)]
    one, two = (read_revision(str(folder / "teacher"), 0).vectors for folder in (whole, halted))
    assert torch.equal(one.user, two.user)
    assert torch.equal(one.item, two.item)


@pytest.mark.slow
def test_two_workers_train_the_same_lattice(ray_cluster, fork_run, settings_of):
    """Through the graph store: each worker maps its own items' features and searches for its share of the neighbours."""
    alone, together = fork_run("alone"), fork_run("together")
    overrides = ("teacher.item_graph_blend=0.5", "teacher.train.epochs=3", "teacher.user_balance=0.5")
    train(settings_of(alone, "lattice", *overrides))
    run_verb("train-teacher", settings_of(together, "lattice", *overrides, "cluster.num_workers=2"))
    assert [r["loss"] for r in history(together)] == pytest.approx([r["loss"] for r in history(alone)], rel=5e-5)
    one, two = (read_revision(str(folder / "teacher"), 0).vectors for folder in (alone, together))
    torch.testing.assert_close(two.item, one.item, atol=2e-3, rtol=0)
    torch.testing.assert_close(two.modal_user["visual"], one.modal_user["visual"], atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("lightgcn", WITHOUT_MODALITIES),
        ("vbpr", ()),
        ("vbpr", ("student.warm_start=true",)),
        ("lattice", ("student.kind=mlp", "student.layers=1")),
    ],
)
def test_a_student_learns_from_it(fork_run, settings_of, kind, overrides):
    folder = fork_run("run")
    settings = settings_of(folder, kind, *overrides)
    dataset = train(settings)
    job = student_job(settings, dataset, 0)
    executor = LocalExecutor(settings.cluster, settings.dir, dataset)
    executor.rank(job.label_job().rankings)
    executor.label(job.label_job(), settings.dir, 3, {})
    executor.run(job)
    rows = history(folder, "student")
    assert rows[2]["loss"] < rows[0]["loss"]
    assert rows[2]["loss/pair"] < rows[0]["loss/pair"]
    assert ("loss/embedding" in rows[0]) == ("loss/list" in rows[0]) == (kind != "lightgcn")


def test_losses_that_it_cannot_teach_are_refused_before_work(fork_run, settings_of, tiny_settings):
    folder = fork_run("run")
    with pytest.raises(InputError, match=r"a lightgcn, which has no vectors by modality.* set distill\.list_weight=0 and"):
        run_verb("pipeline", settings_of(folder, "lightgcn"))
    train(settings_of(folder, "lightgcn"))
    (folder / "stages" / "train-teacher.json").write_text(json.dumps({"made_with": {}, "done": True, "seconds": 0, "result": None}))
    for verb in ("label", "distill"):  # whatever their own settings say of the teacher
        with pytest.raises(InputError, match=r"a lightgcn, which has no vectors by modality"):
            run_verb(verb, tiny_settings(folder, "labels.mode=streamed"))
    with pytest.raises(InputError, match=r"a lightgcn, which has no prompt to tune with distill\.regime=inline"):
        run_verb("distill", tiny_settings(folder, "distill.regime=inline", *WITHOUT_MODALITIES))
