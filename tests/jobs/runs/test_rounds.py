"""The rounds of distillation as a state machine: killed between any two steps, and settled with what is on disk."""

import json
import multiprocessing
import os
import shutil
import signal

import pytest
from promptmm.core.artifact import publish_manifest, read_manifest
from promptmm.core.errors import InputError
from promptmm.core.storage import remove
from promptmm.distributed.artifacts.teacher import revision_url
from promptmm.distributed.labels.files import labels_url
from promptmm.jobs.runs.report import read_history, rounds_in_words
from promptmm.jobs.runs.round_states import DONE, LABEL, Rounds, State, rounds_url
from promptmm.jobs.settings import load_settings
from promptmm.jobs.verbs import run_verb

WORDS = [
    "source.synthetic_num_users=60",
    "source.synthetic_num_items=40",
    "source.synthetic_interactions_per_user=8",
    "teacher.dim=6",
    "teacher.train.epochs=1",
    "student.dim=6",
    "student.train.epochs=4",
    "student.train.checkpoint_every=1",
    "student.train.batch_size=128",
    "labels.epochs=2",
    "distill.num_uniform=3",
    "distill.num_top=2",
    "distill.rounds=2",
    "distill.tuning_steps=3",
    "evaluation.cutoffs=[5, 20]",
    "cluster.executor=local",
    "cluster.threads=1",
]
WAY = ["label 0", "distil 0", "tune 0", "label 1", "distil 1", "done 1"]


def settings_of(folder, *words):
    return load_settings(None, [*WORDS, f"run.dir={folder}", *words])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A run's folder after `label`."""
    folder = tmp_path_factory.mktemp("labelled") / "run"
    for verb in ("prepare", "train-teacher", "label"):
        run_verb(verb, settings_of(folder))
    return folder


@pytest.fixture(scope="module")
def undisturbed(labelled, tmp_path_factory):
    """The same after `distill` without an interruption."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(labelled, folder)
    run_verb("distill", settings_of(folder))
    return folder


@pytest.fixture
def fork(tmp_path):
    """Copies a run's folder."""

    def copy(source):
        shutil.copytree(source, tmp_path / "run")
        return tmp_path / "run"

    return copy


def record_of(folder):
    return json.loads((folder / "training" / "student" / "rounds.json").read_text())


def set_state(folder, state):
    path = folder / "training" / "student" / "rounds.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": state}))


def trained(folder):
    """Every byte that rounds decide."""
    paths = [*folder.glob("teacher/rev-1/*.safetensors"), *folder.glob("training/student/model/*.safetensors")]
    assert len(paths) == 5
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def way(record):
    """The states that a record led through, and its transitions, which have to be a chain."""
    transitions = record["transitions"]
    assert [each["from"] for each in transitions] == [None, *(each["to"] for each in transitions[:-1])]
    assert all(each["at"].endswith("Z") for each in transitions)
    assert record["state"] == transitions[-1]["to"]
    return [each["to"] for each in transitions]


def test_every_transition_is_recorded(undisturbed):
    assert way(record_of(undisturbed)) == WAY
    assert json.loads((undisturbed / "stages" / "distill.json").read_text())["result"]["rounds"] == 2
    assert not any("because" in each for each in record_of(undisturbed)["transitions"])


def distill_until(folder, state, recorded):
    """Distils, and dies by SIGKILL when the work of a state is complete: before the transition is recorded, or after it."""

    def advance_and_die(self, advance=Rounds.advance):
        if recorded or str(self.state) != state:
            following = advance(self)
        if str(self.state) == state:
            os.kill(os.getpid(), signal.SIGKILL)
        return following

    Rounds.advance = advance_and_die
    run_verb("distill", settings_of(folder))


@pytest.mark.parametrize("recorded", [False, True], ids=["unrecorded", "recorded"])
def test_a_run_killed_after_every_step_changes_nothing(labelled, undisturbed, fork, recorded):
    """A process for each step is killed when the work of the step is complete, before its transition is recorded or right after."""
    folder, context = fork(labelled), multiprocessing.get_context("fork")
    for state in WAY[:-1]:
        process = context.Process(target=distill_until, args=(folder, state, recorded))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert record_of(folder)["state"] == (WAY[WAY.index(state) + 1] if recorded else state)
    run_verb("distill", settings_of(folder))
    assert way(record_of(folder)) == WAY
    assert trained(folder) == trained(undisturbed)
    found = [each.get("because") for each in record_of(folder)["transitions"]]
    assert found == ([None] * 6 if recorded else [None, None, None, "revision 1 is complete", None, None])


@pytest.mark.parametrize(
    ("state", "missing", "expected"),
    [
        ("label 1", "teacher/rev-1/manifest.json", [("tune 0", "revision 1 is not complete")]),
        ("distil 1", "labels/rev-1/manifest.json", [("label 1", "the labels of revision 1 are not complete")]),
        ("distil 0", "labels/rev-0/manifest.json", [("label 0", "the labels of revision 0 are not complete")]),
        ("tune 0", None, [("label 1", "revision 1 is complete")]),
        ("tune 0", "teacher/rev-1/manifest.json", []),
        ("done 1", "training/student/model/manifest.json", [("distil 1", "the trained student is not complete")]),
        ("done 1", None, []),
    ],
)
def test_files_count_where_the_record_says_otherwise(undisturbed, fork, capsys, state, missing, expected):
    folder = fork(undisturbed)
    set_state(folder, state)
    if missing is not None:
        (folder / missing).unlink()
    rounds = Rounds.open(settings_of(folder), taught=True)
    moved = rounds.transitions[len(WAY) :]
    assert [(each["to"], each["because"]) for each in moved] == expected
    assert record_of(folder)["state"] == str(rounds.state) == (expected[-1][0] if expected else state)
    for to, because in expected:
        assert f"[distill] goes on at {to}: {because}" in capsys.readouterr().out


def test_a_revision_of_another_teacher_does_not_count(undisturbed, fork):
    folder = fork(undisturbed)
    set_state(folder, "tune 0")
    url = revision_url(f"{folder}/teacher", 1)
    manifest = read_manifest(url, "teacher-vectors")
    facts = {name: value for name, value in manifest.items() if name not in ("schema_version", "kind", "files")}
    publish_manifest(url, "teacher-vectors", {**facts, "tuned_from": "another"}, manifest["files"])
    assert str(Rounds.open(settings_of(folder), taught=True).state) == "tune 0"


def test_a_revision_that_was_there_before_tuning_is_removed(undisturbed, fork):
    folder = fork(undisturbed)
    set_state(folder, "distil 0")
    assert str(Rounds.open(settings_of(folder), taught=True).advance().state) == "tune 0"
    assert not (folder / "teacher" / "rev-1").exists()


def test_a_run_of_an_earlier_version_is_counted_by_its_revisions(undisturbed, fork):
    folder = fork(undisturbed)
    (folder / "training" / "student" / "rounds.json").unlink()
    assert Rounds.open(settings_of(folder), taught=True).state == State(LABEL, 1)
    remove(rounds_url(str(folder)))
    shutil.rmtree(folder / "training" / "student" / "checkpoints")
    assert Rounds.open(settings_of(folder), taught=True).state == State(LABEL, 0)


def undone(folder, state):
    """Makes the stage one that was killed in a state."""
    set_state(folder, state)
    path = folder / "stages" / "distill.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "done": False, "result": None}))


@pytest.mark.parametrize("state", ["distil 1", "distil 0"])
def test_a_student_does_not_go_back_to_an_earlier_revision(undisturbed, fork, state):
    """The second round was trained, and its revision is gone: tuning again would be against a student of that revision."""
    folder = fork(undisturbed)
    undone(folder, state)
    remove(revision_url(f"{folder}/teacher", 1))
    with pytest.raises(InputError, match=r"has learnt from labels of revision 1, and revision 0 is its turn.*run.redo=distill"):
        run_verb("distill", settings_of(folder))


def test_a_later_round_does_not_begin_with_a_new_student(undisturbed, fork):
    folder = fork(undisturbed)
    undone(folder, "distil 1")
    shutil.rmtree(folder / "training" / "student" / "checkpoints")
    with pytest.raises(InputError, match=r"no checkpoint of the student for the round of revision 1; add run.redo=distill"):
        run_verb("distill", settings_of(folder))


def test_redo_forgets_the_rounds(undisturbed, fork):
    folder = fork(undisturbed)
    run_verb("distill", settings_of(folder, "run.redo=distill"))
    assert way(record_of(folder)) == WAY
    assert trained(folder) == trained(undisturbed)


@pytest.mark.parametrize("fact", ["teacher", "revision"])
def test_labels_of_another_revision_are_refused(labelled, fork, fact):
    folder = fork(labelled)
    url = labels_url(str(folder), 0)
    manifest = read_manifest(url, "labels")
    facts = {name: value for name, value in manifest.items() if name not in ("schema_version", "kind", "files")}
    publish_manifest(url, "labels", {**facts, fact: "another" if fact == "teacher" else 1}, manifest["files"])
    expected = "these labels are of another teacher than .*rev-0" if fact == "teacher" else "revision is 1, 0 expected"
    with pytest.raises(InputError, match=expected):
        run_verb("distill", settings_of(folder))
    assert not (folder / "training" / "student").exists()  # a refused first attempt leaves nothing, so that other inputs may follow
    assert not (folder / "stages" / "distill.json").exists()


def test_another_number_of_rounds_is_refused(undisturbed):
    with pytest.raises(InputError, match=r"begun with distill.rounds=2 \(now 3\); add run.redo=distill"):
        Rounds.open(settings_of(undisturbed, "distill.rounds=3"), taught=True)


def test_the_report_says_what_the_student_learnt_from(undisturbed):
    history = read_history(str(undisturbed), "student")
    epochs = "from revision 0 of the prompt in epochs 0 to 1, from revision 1 of the prompt in epochs 2 to 3"
    said = f"The student learnt in 2 rounds, {epochs}; "
    assert rounds_in_words(history, 3) == f"{said}the chosen epoch, 3, learnt from revision 1."
    assert rounds_in_words(history, -1) == f"{said}the start was the best."
    assert rounds_in_words(history[:2], 1) is None


def test_a_student_alone_has_one_round(tmp_path):
    rounds = Rounds.open(settings_of(tmp_path), taught=False)
    while rounds.state.step != DONE:
        rounds = rounds.advance()
    assert way(record_of(tmp_path)) == ["label 0", "distil 0", "done 0"]
