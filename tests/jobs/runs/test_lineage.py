"""What stages are made with, and when a student is taught: one answer for the plan, the records and the artifacts."""

import dataclasses
import re
import sys
import types

import pytest
import torch
from promptmm.core.artifact import publish_manifest, read_manifest
from promptmm.core.errors import InputError
from promptmm.core.objectives import learns_by_modality
from promptmm.core.teacher.collaborative import LightGcnTeacher
from promptmm.core.teacher.model import PromptTeacher
from promptmm.core.vectors import TeacherVectors
from promptmm.distributed.artifacts.teacher import output_of_vectors, write_revision
from promptmm.distributed.execution.local import LocalExecutor, start_worker
from promptmm.distributed.labels.files import labels_url
from promptmm.distributed.labels.source import MaterialisedLabels
from promptmm.graph_store.dataset import Dataset, open_dataset
from promptmm.jobs.planning.sizes import Sizes
from promptmm.jobs.runs.compatibility import check_teachable, check_teacher, check_trained_teacher, has_teacher
from promptmm.jobs.runs.lineage import Inputs, bundle_inputs, label_inputs, student_inputs, up_to_date
from promptmm.jobs.runs.preparation import prepare_dataset
from promptmm.jobs.runs.stages import differences, run_stage, setting_defaults
from promptmm.jobs.runs.worker_jobs import student_job
from promptmm.jobs.settings import Settings, load_settings
from promptmm.jobs.verbs import run_verb

WORDS = [
    "source.synthetic_num_users=30", "source.synthetic_num_items=20", "source.synthetic_interactions_per_user=6", "evaluation.cutoffs=[20]",
    "student.train.batch_size=64", "labels.block_rows=64", "labels.epochs=1",
]  # fmt: skip


def prepared(folder, *words: str) -> tuple[Settings, Dataset]:
    settings = load_settings(None, [*WORDS, *words, f"run.dir={folder}"])
    prepare_dataset(settings)
    return settings, open_dataset(f"{folder}/dataset")


def leave_teacher(settings: Settings, dataset: Dataset) -> None:
    """Vectors of a teacher without modalities, as train-teacher leaves them."""
    users, items = torch.rand(dataset.num_users, 4), torch.rand(dataset.num_items, 4)
    vectors = TeacherVectors(users, items, {}, {}, users, items, {})
    write_revision(f"{settings.dir}/teacher", 0, output_of_vectors(start_worker(1), vectors), {"none": torch.zeros(1)}, {})


def test_labels_and_their_record_have_the_same_identity(tmp_path):
    """Every field of the manifest's candidates is in the record, so that a changed one is refused by both."""
    settings, dataset = prepared(tmp_path, "source.modalities={}", "distill.num_uniform=3", "distill.num_top=1", "run.seed=5")
    leave_teacher(settings, dataset)
    job = student_job(settings, dataset, 0).label_job()
    executor = LocalExecutor(settings.cluster, settings.dir, dataset)
    executor.rank(job.rankings)
    executor.label(job, settings.dir, 1, {})
    manifest, inputs = read_manifest(labels_url(settings.dir, 0), "labels"), label_inputs(settings, dataset)
    recorded = {**inputs["distill"], **inputs["run"], "examples": inputs["student"]["examples"]}
    assert recorded == job.candidates()
    assert recorded.items() <= manifest.items()
    assert inputs["student"]["train"]["batch_size"] == manifest["batch_size"]
    changes = ["distill.num_uniform=4", "distill.num_top=2", "distill.top_depth=7", "run.seed=6"]
    for change in [*changes, "student.examples=users"]:
        changed = load_settings(None, [*WORDS, "source.modalities={}", "distill.num_uniform=3", "distill.num_top=1", "run.seed=5", change,
                                       f"run.dir={tmp_path}"])  # fmt: skip
        assert label_inputs(changed, dataset) != inputs
        with pytest.raises(InputError, match="run label again"):
            MaterialisedLabels(settings.dir, student_job(changed, dataset, 0).label_job(), [], lambda: pytest.fail("opened no rankings"))


def test_plan_and_run_agree_on_whether_there_is_a_teacher(tmp_path):
    settings, dataset = prepared(tmp_path, "source.modalities={}")
    assert not has_teacher(settings, dataset)
    assert not Sizes.of(settings, dataset).taught
    by_lightgcn = load_settings(None, [f"run.dir={tmp_path}", "teacher.kind=lightgcn"])
    assert has_teacher(by_lightgcn, dataset)
    assert Sizes.of(by_lightgcn, dataset).taught
    with pytest.raises(InputError, match=r"the dataset has no modality, and teacher.kind=promptmm learns from at least one"):
        check_teachable(settings, dataset)
    check_teachable(by_lightgcn, dataset)


def test_a_teacher_in_the_folder_teaches_whatever_this_command_says_of_it(tmp_path):
    settings, dataset = prepared(tmp_path, "source.modalities={}")
    teacher_at(settings.dir)
    assert has_teacher(settings, dataset)
    assert Sizes.of(settings, dataset).taught
    alone = load_settings(None, [f"run.dir={tmp_path}", "distill.use_teacher=false"])
    assert not has_teacher(alone, dataset)
    assert not Sizes.of(alone, dataset).taught


def teacher_at(run_dir: str, modalities: list[str] | None = None, **config) -> None:
    publish_manifest(f"{run_dir}/teacher", "teacher", {"modalities": modalities or [], "config": {"kind": "lightgcn", **config}}, {})
    publish_manifest(f"{run_dir}/teacher/rev-0", "teacher-vectors", {"revision": 0, "modalities": modalities or []}, {})


@pytest.mark.parametrize(
    ("kind", "by_modality", "words", "message"),
    [
        ("lightgcn", False, [], "no vectors by modality for distill.list_weight=0.1"),
        ("vbpr", True, ["distill.rounds=2"], "the teacher is a vbpr, which has no prompt to tune"),
        ("vbpr", True, ["distill.regime=inline"], "with distill.regime=inline"),
    ],
)
def test_what_a_teacher_cannot_teach(kind, by_modality, words, message):
    with pytest.raises(InputError, match=message):
        check_teacher(load_settings(None, words), kind, by_modality)


def test_what_a_teacher_can_teach():
    check_teacher(load_settings(None, ["distill.list_weight=0", "distill.embedding_weight=0"]), "lightgcn", False)
    check_teacher(load_settings(None, ["distill.rounds=2"]), "promptmm", True)
    check_teacher(load_settings(None, []), "vbpr", True)


def test_a_teacher_that_was_trained_without_its_prompt_is_not_tuned(tmp_path):
    teacher_at(str(tmp_path), ["image"], kind="promptmm", prompt=False)
    check_trained_teacher(load_settings(None, [f"run.dir={tmp_path}"]))
    for word in ("distill.rounds=2", "distill.regime=inline"):
        with pytest.raises(InputError, match=r"the teacher was trained with teacher\.prompt=false and has no prompt to tune"):
            check_trained_teacher(load_settings(None, [f"run.dir={tmp_path}", word]))


@learns_by_modality
def of_modalities(inputs):
    """A loss of one's own that reads what the teacher knows by modality."""
    return inputs.modal_scores.sum()


def of_scores(inputs):
    """A loss of one's own that reads the teacher's final scores alone."""
    return inputs.teacher_scores.sum()


@pytest.fixture
def own_losses(monkeypatch) -> str:
    """The name of a module with the two losses above."""
    name = "own_losses_of_test_lineage"
    module = types.ModuleType(name)
    module.of_modalities, module.of_scores = of_modalities, of_scores
    monkeypatch.setitem(sys.modules, name, module)
    return name


def test_an_own_loss_is_refused_where_it_needs_modalities_that_the_teacher_has_not(own_losses):
    shipped = ["distill.list_weight=0", "distill.embedding_weight=0"]
    settings = load_settings(None, [*shipped, f"distill.losses={{{own_losses}:of_scores: 1.0, {own_losses}:of_modalities: 0.5}}"])
    message = rf"no vectors by modality for distill.losses of {own_losses}:of_modalities to learn from; leave .*of_modalities out of"
    with pytest.raises(InputError, match=message):
        check_teacher(settings, "lightgcn", False)
    check_teacher(settings, "vbpr", True)
    check_teacher(load_settings(None, [*shipped, f"distill.losses={{{own_losses}:of_scores: 1.0}}"]), "lightgcn", False)


def test_own_losses_without_a_teacher_are_refused(own_losses, tmp_path):
    words = [f"distill.losses={{{own_losses}:of_scores: 1.0}}"]
    with pytest.raises(InputError, match=r"learn from a teacher's labels, and distill.use_teacher=false trains without one"):
        load_settings(None, [*words, "distill.use_teacher=false"])
    settings, _ = prepared(tmp_path, "source.modalities={}", *words)
    with pytest.raises(InputError, match=r"the dataset has no modality to train one from; leave distill.losses out"):
        run_verb("distill", settings)


def test_an_own_teacher_is_asked_for_its_prompt(monkeypatch):
    name = "own_teacher_of_test_lineage"
    module = types.ModuleType(name)
    module.Mine = type("Mine", (LightGcnTeacher,), {"reads_features": True})
    module.Prompted = type("Prompted", (PromptTeacher,), {})
    monkeypatch.setitem(sys.modules, name, module)
    tuned = load_settings(None, ["distill.rounds=2"])
    with pytest.raises(InputError, match=f"the teacher is a {name}:Mine, which has no prompt to tune"):
        check_teacher(tuned, f"{name}:Mine", True)
    check_teacher(tuned, f"{name}:Prompted", True)


def student_record(folder, *words: str) -> tuple[Settings, Inputs]:
    """Settings, and what a student of written labels is made with."""
    settings, dataset = prepared(folder, "source.modalities={}", *words)
    lineage = {"dataset": dataset.digest, "labels": "sum of labels", "teacher": "sum of teacher"}
    return settings, student_inputs(settings, dataset, True, lineage)


def test_a_student_is_recorded_with_the_settings_and_the_checksum_of_its_labels(tmp_path):
    _, inputs = student_record(tmp_path / "first", "labels.epochs=3")
    assert inputs["labels"]["epochs"] == 3
    assert inputs["labels_made"] == "sum of labels"
    _, changed = student_record(tmp_path / "second", "labels.epochs=4")
    assert differences(inputs, changed) == ["labels.epochs=3 (now 4)"]


def test_a_record_that_has_the_labels_checksum_alone_is_understood(tmp_path):
    """As versions before wrote it, where the checksum stood in the place of the settings."""
    settings, now = student_record(tmp_path)
    before = {**now, "labels": now["labels_made"]}
    del before["labels_made"]
    run_stage(settings, "distill", before, dict)
    assert run_stage(settings, "distill", now, lambda: pytest.fail("done again")).done
    with pytest.raises(InputError, match=re.escape("distill was started here with labels_made=sum of labels (now another). Use")):
        run_stage(settings, "distill", {**now, "labels_made": "another"}, dict)


def test_a_bundle_of_an_earlier_version_had_the_vectors_of_the_student(tmp_path):
    """Its record has no export settings: it fits `export.map_untouched=false`, and where no item is untouched it fits either value."""
    settings, dataset = prepared(tmp_path)
    student = {"files": {}}
    for without, expected in ((0, []), (3, ["export.map_untouched=False (now True)"])):
        changed = dataclasses.replace(dataset, manifest={**dataset.manifest, "items_without_train": without})
        now = bundle_inputs(settings, changed, student)
        earlier = {name: value for name, value in now.items() if name != "export"}
        assert differences(up_to_date(earlier, now), now, setting_defaults()) == expected
        off = bundle_inputs(load_settings(None, ["export.map_untouched=false"]), changed, student)
        assert not differences(up_to_date(earlier, off), off, setting_defaults())
