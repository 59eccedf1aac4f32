"""Several students learn from one run's teacher and labels (`labels.run`)."""

import json
from pathlib import Path

import pytest
from promptmm.core.errors import InputError
from promptmm.core.storage import join
from promptmm.jobs.planning.plan import make_plan
from promptmm.jobs.runs.folder import open_run_dataset
from promptmm.jobs.settings import load_settings
from promptmm.jobs.verbs import run_verb

WORDS = [
    "cluster.executor=local",
    "source.synthetic_num_users=150",
    "source.synthetic_num_items=90",
    "source.synthetic_interactions_per_user=12",
    "teacher.dim=8",
    "teacher.hidden=[12]",
    "student.dim=8",
    "teacher.train.epochs=2",
    "student.train.epochs=3",
    "student.train.batch_size=256",
    "distill.num_uniform=4",
    "distill.num_top=2",
    "labels.epochs=3",
    "evaluation.cutoffs=[5, 20]",
]


def settings_of(folder, *words):
    return load_settings("demo", [*WORDS, *words, f"run.dir={folder}"])


@pytest.fixture(scope="module", params=["examples", "users"])
def first(request, tmp_path_factory):
    """A whole run, and the setting of how its labels are kept."""
    folder, by = tmp_path_factory.mktemp("first") / "run", f"labels.by={request.param}"
    run_verb("pipeline", settings_of(folder, by))
    return folder, by


def vectors(folder: Path) -> bytes:
    return (folder / "training" / "student" / "model" / "vectors.safetensors").read_bytes()


def test_another_student_learns_from_the_first_ones_labels(first, tmp_path, capsys):
    """The same student comes out where the settings are the same, and nothing is trained or labelled again."""
    run, by = first
    folder = tmp_path / "again"
    run_verb("pipeline", settings_of(folder, by, f"labels.run={run}"))
    said = capsys.readouterr().out
    assert f"[train-teacher] nothing to train: the teacher is that of {run} (labels.run)" in said
    assert f"[label] nothing to write: the labels are those of {run} (labels.run)" in said
    assert vectors(folder) == vectors(run)
    assert not (folder / "teacher").exists()
    assert not (folder / "labels").exists()
    results = [json.loads((each / "results.json").read_text()) for each in (run, folder)]
    assert results[0]["teacher"] == results[1]["teacher"]
    assert (folder / "student" / "manifest.json").exists()


def test_students_of_other_sizes_seeds_and_batches_share_labels(first, tmp_path):
    run, by = first
    own = [by, f"labels.run={run}"]
    for number, more in enumerate((["student.dim=16", "student.kind=mf"], ["run.seed=3"], ["student.train.batch_size=100"])):
        folder = tmp_path / str(number)
        for verb in ("prepare", "train-teacher", "label", "distill"):
            seed = [word for word in more if not (verb == "prepare" and word.startswith("run.seed"))]
            run_verb(verb, settings_of(folder, *own, *seed))
        assert vectors(folder) != vectors(run)


def test_a_student_of_labels_that_were_made_again_is_refused(first, fork_first, tmp_path):
    run, by = fork_first
    folder = tmp_path / "student"
    own = settings_of(folder, by, f"labels.run={run}")
    for verb in ("prepare", "train-teacher", "label", "distill"):
        run_verb(verb, own)
    run_verb("label", settings_of(run, by, "run.redo=label", "labels.seed=5"))
    with pytest.raises(InputError, match=r"label was started here with digest="):
        run_verb("label", own)
    with pytest.raises(InputError, match=r"distill was started here with"):
        run_verb("distill", own)


@pytest.fixture
def fork_first(first, tmp_path):
    import shutil

    run, by = first
    shutil.copytree(run, tmp_path / "forked")
    return tmp_path / "forked", by


def test_what_cannot_be_shared_is_refused(first, tmp_path):
    run, by = first
    for words, message in (
        (["labels.mode=streamed", "labels.by=examples"], "names labels that are written"),
        (["distill.rounds=2"], "whose prompt and labels stay as they are"),
        (["distill.use_teacher=false"], "whose prompt and labels stay as they are"),
    ):
        with pytest.raises(InputError, match=message):
            settings_of(tmp_path, by, f"labels.run={run}", *words)
    with pytest.raises(InputError, match="is this run's own folder"):
        settings_of(run, by, f"labels.run={run}/../{run.name}/")


@pytest.mark.parametrize(("word", "what"), [("labels.scores=uint8", "encoding is float16, uint8"), ("labels.seed=4", "seed is 0, 4")])
def test_settings_that_the_labels_do_not_have_are_refused_before_training(first, tmp_path, word, what):
    run, by = first
    own = settings_of(tmp_path / "student", by, f"labels.run={run}", word)
    run_verb("prepare", own)
    with pytest.raises(InputError, match=f"{what} expected; give this run the settings that the labels of labels.run=.* were made with"):
        run_verb("train-teacher", own)


def test_a_teacher_of_another_dataset_is_refused(first, tmp_path):
    run, by = first
    own = settings_of(tmp_path / "other", by, f"labels.run={run}", "source.synthetic_num_users=151")
    run_verb("prepare", own)
    with pytest.raises(InputError, match="trained on another dataset"):
        run_verb("train-teacher", own)


def test_missing_labels_are_named(first, tmp_path):
    _, by = first
    own = settings_of(tmp_path / "student", by, f"labels.run={tmp_path}/nowhere")
    run_verb("prepare", own)
    with pytest.raises(InputError, match=r"nowhere/teacher: no complete teacher here"):
        run_verb("train-teacher", own)


def test_the_plan_leaves_out_what_another_run_has_done(first):
    run, by = first
    dataset = open_run_dataset(settings_of(run, by))
    alone, shared = (make_plan(settings_of(run, by, *more), dataset, None) for more in ([], [f"labels.run={join(str(run), 'x')}"]))
    assert {"train-teacher", "label"} <= set(alone.hosts)
    assert {"train-teacher", "label", "rank"}.isdisjoint(shared.hosts)
    assert "evaluate (teacher)" in shared.hosts
