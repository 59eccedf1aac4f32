"""`promptmm refit`: what a run has chosen, trained on its validation interactions too."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from promptmm.core.sides import SIDE_NAMES, SIDES
from promptmm.distributed.artifacts.teacher import read_revision, teacher_config_of
from promptmm.graph_store.dataset import open_dataset
from promptmm.jobs.cli import main

SMALL = (
    "source.format=synthetic", "source.synthetic_num_users=120", "source.synthetic_num_items=80",
    "source.synthetic_interactions_per_user=12", "source.synthetic_dims={visual: 16, text: 8}", "cluster.executor=local",
    "cluster.threads=1",
)  # fmt: skip
COMPONENTS = (
    "teacher.components={mf-1: {kind: mf, temperature: 0.1, loss: softmax, l2: 0.0}, mf-3: {kind: mf, temperature: 0.3, loss: softmax,"
    " l2: 0.0}, lightgcn: {temperature: null, loss: softmax, l2: 0.0}, content: {linear: {trials: 3}}, promptmm: {train: {epochs: 1}}}"
)
QUICK = (
    "teacher.kind=ensemble", COMPONENTS, "teacher.train.epochs=6", "teacher.train.learning_rate=0.05",
    "teacher.dim=8", "student.dim=8", "student.train.epochs=4",
    "student.train.learning_rate=0.05", "labels.epochs=2", "distill.top_depth=20", "student.warm_start=true",
)  # fmt: skip


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """Returns the folder of a finished run, trained once."""
    folder = tmp_path_factory.mktemp("chosen") / "run"
    assert main(["pipeline", "lists", *SMALL, *QUICK, f"run.dir={folder}"]) == 0
    return folder


def read(path):
    return json.loads(path.read_text())


def test_choices_are_kept_and_the_validation_interactions_train(command, chosen):
    ended = command("refit", f"run.dir={chosen}")
    assert ended.code == 0, ended.err
    first, second = open_dataset(str(chosen / "dataset")), open_dataset(str(chosen / "refit" / "dataset"))
    pairs = [
        {split: set(zip(*map(np.ndarray.tolist, each.interactions(split)))) for split in ("train", "test")} for each in (first, second)
    ]
    validation = set(zip(*map(np.ndarray.tolist, first.interactions("validation"))))
    assert not second.has_split("validation")
    assert pairs[1]["train"] == pairs[0]["train"] | validation
    assert pairs[1]["test"] == pairs[0]["test"]

    teacher = read(chosen / "teacher" / "manifest.json")
    weights = {name: facts["weight"] for name, facts in teacher["components"].items() if facts["weight"]}
    config = yaml.safe_load((chosen / "refit" / "config.yaml").read_text())
    components = config["teacher"]["components"]
    assert len(weights) > 1
    assert {name: own["weight"] for name, own in components.items()} == weights
    again = read(chosen / "refit" / "teacher" / "manifest.json")
    assert list(teacher_config_of(again).components) == list(components)  # lightgcn after the tables whose temperature it may have
    assert {name: facts["weight"] for name, facts in again["components"].items()} == pytest.approx(weights)
    for name in components:
        before, after = (read(where / "components" / name / "teacher" / "manifest.json") for where in (chosen, chosen / "refit"))
        if "linear" in before:
            assert after["linear"]["settings"] == before["linear"]["settings"]
            assert after["linear"]["trials"] == 0
        else:
            assert after["best_epoch"] == before["best_epoch"]
            assert after["config"]["temperature"] == before["config"]["temperature"]
    student = read(chosen / "training" / "student" / "model" / "manifest.json")
    refitted = read(chosen / "refit" / "training" / "student" / "model" / "manifest.json")
    assert refitted["best_epoch"] == student["best_epoch"]
    assert refitted["config"]["train"]["epochs"] == student["best_epoch"] + 1
    assert read(chosen / "refit" / "results.json")["student"]["test"]["recall@20"] > 0
    assert (chosen / "refit" / "student" / "manifest.json").exists()
    assert "[distill] already done" in command("refit", f"run.dir={chosen}").out


def test_a_student_whose_start_was_the_best_is_its_start(command, chosen, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(chosen, folder, ignore=shutil.ignore_patterns("refit"))
    high = ("student.train.learning_rate=3.0", "student.train.patience=1", "run.redo=distill")  # every step makes it worse
    assert command("distill", "lists", *SMALL, *QUICK, *high, f"run.dir={folder}").code == 0
    assert read(folder / "training" / "student" / "model" / "manifest.json")["best_epoch"] == -1
    ended = command("refit", f"run.dir={folder}")
    assert ended.code == 0, ended.err
    assert "student of 0 epochs" in ended.out
    assert read(folder / "refit" / "results.json")["student"]["test"]["recall@20"] > 0


@pytest.mark.parametrize("teacher", ["spectral", "mf", None])
def test_single_teachers_and_none(command, tmp_path, teacher):
    own = (f"teacher.kind={teacher}", "teacher.linear.trials=4") if teacher == "spectral" else (f"teacher.kind={teacher}",)
    if teacher is None:
        own = ("distill.use_teacher=false", "student.bpr_weight=1")
    words = (*SMALL, "teacher.train.epochs=2", "teacher.dim=8", "student.dim=8", "student.train.epochs=2", "labels.epochs=1",
             "distill.top_depth=20", *own)  # fmt: skip
    ended = command("pipeline", "lists", *words, f"run.dir={tmp_path}")
    assert ended.code == 0, ended.err
    assert command("refit", f"run.dir={tmp_path}").code == 0
    assert read(tmp_path / "refit" / "results.json")["student"]["test"]["recall@20"] > 0
    if teacher == "spectral":
        before, after = (read(where / "teacher" / "manifest.json")["linear"] for where in (tmp_path, tmp_path / "refit"))
        assert (after["settings"], after["trials"]) == (before["settings"], 0)


def test_what_cannot_be_refitted_is_refused(command, chosen, tmp_path):
    assert command("refit", f"run.dir={chosen}").code == 0
    for words, message in (
        ((f"run.dir={chosen}", "teacher.dim=16"), "teacher.dim: the setting of the run"),
        (("lists", f"run.dir={chosen}"), "takes the settings of a finished run and no recipe"),
        ((f"run.dir={tmp_path}",), "no run has saved its settings here"),
        ((f"run.dir={chosen}/refit",), "no validation split"),
        ((f"run.dir={chosen}", "cluster.engine=sampled"), "cluster.engine: refit trains with the engine"),
    ):
        ended = command("refit", *words)
        assert ended.code == 2
        assert message in ended.err
    words = ("pipeline", "lists", *SMALL, "teacher.kind=ensemble", "student.dim=8", "student.train.epochs=1", "labels.epochs=1")
    artifact = f"teacher.components={{spectral: {{}}, earlier: {{artifact: {chosen}/teacher}}}}"
    assert command(*words, artifact, "distill.top_depth=20", f"run.dir={tmp_path}/run").code == 0
    ended = command("refit", f"run.dir={tmp_path}/run")
    assert ended.code == 2
    assert "teacher.components.earlier is a teacher of another run" in ended.err


def test_vectors_that_were_trained_elsewhere_are_not_refitted(command, chosen, tmp_path):
    vectors, dataset = read_revision(str(chosen / "teacher"), 0).vectors, open_dataset(str(chosen / "dataset"))
    for side, rows in zip(SIDES, (vectors.user, vectors.item)):
        table = pa.table({SIDE_NAMES[side]: dataset.ids(side), "final": list(rows.numpy())})
        pq.write_table(table, tmp_path / f"{SIDE_NAMES[side]}s.parquet")
    words = ("pipeline", "lists", *SMALL, "student.dim=8", "student.train.epochs=1", "labels.epochs=1", "distill.top_depth=20")
    alone = [f"teacher.vectors.{side}={tmp_path}/{side}.parquet" for side in ("users", "items")]
    files = f"{{kind: vectors, weight: 1, vectors: {{users: {tmp_path}/users.parquet, items: {tmp_path}/items.parquet}}}}"
    together = f"teacher.components={{spectral: {{weight: 1, linear: {{rank: 8, trials: 1}}}}, mine: {files}}}"
    for name, teacher, what in (
        ("alone", ["teacher.kind=vectors", *alone], "teacher.kind=vectors"),
        ("together", ["teacher.kind=ensemble", together], "teacher.components.mine"),
    ):
        assert command(*words, *teacher, f"run.dir={tmp_path}/{name}").code == 0
        ended = command("refit", f"run.dir={tmp_path}/{name}")
        assert ended.code == 2
        assert f"{what} was trained elsewhere" in ended.err
        assert f"source.joined={tmp_path}/{name}/dataset" in ended.err


def test_what_other_commands_have_saved_since_changes_nothing(command, tmp_path):
    small = (*SMALL, "teacher.kind=mf", "teacher.dim=8", "student.dim=8", "teacher.train.epochs=1", "student.train.epochs=1",
             "labels.epochs=1")  # fmt: skip
    assert command("pipeline", "lists", *small, "distill.top_depth=20", "run.seed=3", f"run.dir={tmp_path}").code == 0
    assert command("plan", "lists", *small, "teacher.dim=16", "student.dim=24", f"run.dir={tmp_path}").code == 0
    assert command("recommend", "lists", "recommend.k=5", f"run.dir={tmp_path}").code == 0
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["student"]["dim"] == 24
    ended = command("refit", f"run.dir={tmp_path}", "cluster.executor=local", "cluster.threads=1")
    assert ended.code == 0, ended.err
    config = yaml.safe_load((tmp_path / "refit" / "config.yaml").read_text())
    assert (config["teacher"]["dim"], config["student"]["dim"], config["run"]["seed"]) == (8, 8, 3)


def test_lists_of_the_run_are_not_written_over(command, chosen, tmp_path):
    lists, own = tmp_path / "lists.parquet", tmp_path / "refitted.parquet"
    assert command("recommend", "cluster.executor=local", f"run.dir={chosen}", f"recommend.output={lists}").code == 0
    before = lists.read_bytes()
    ended = command("refit", f"run.dir={chosen}", "run.redo=recommend")
    assert ended.code == 0, ended.err
    assert lists.read_bytes() == before
    assert "top 10 for user" in ended.out
    assert command("refit", f"run.dir={chosen}", "run.redo=recommend", f"recommend.output={own}").code == 0
    assert (own.exists(), lists.read_bytes()) == (True, before)


def test_the_dataset_is_the_runs_and_no_source_is_read(command, chosen, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(chosen, folder, ignore=shutil.ignore_patterns("refit"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["source"] |= {"format": "parquet", "path": "no/such/folder"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert command("refit", f"run.dir={folder}").code == 0
    manifest = read(folder / "refit" / "dataset" / "manifest.json")
    assert manifest["joined"] == open_dataset(str(folder / "dataset")).digest
    other = ("source.seed=5", "run.redo=prepare")
    assert command("pipeline", "lists", *SMALL, *QUICK, *other, f"run.dir={folder}").code == 0  # another dataset in the same folder
    ended = command("refit", f"run.dir={folder}")
    assert ended.code == 2
    assert "run.redo=prepare" in ended.err
    assert command("refit", f"run.dir={folder}", "run.redo=prepare").code == 0
    assert read(folder / "refit" / "dataset" / "manifest.json")["joined"] == open_dataset(str(folder / "dataset")).digest


def test_settings_that_had_no_meaning_with_what_was_chosen_are_left_out(command, tmp_path):
    linear = ("teacher.kind=spectral", "teacher.linear.content_weight=null", "teacher.linear.preparation=whitened")
    words = (*SMALL, *linear, "source.synthetic_noise=60", "source.seed=0", "student.dim=8", "student.train.epochs=1", "labels.epochs=1")
    assert command("pipeline", "lists", *words, "distill.top_depth=20", f"run.dir={tmp_path}").code == 0
    chosen = read(tmp_path / "teacher" / "manifest.json")["linear"]["settings"]
    assert chosen["content_weight"] == 0  # features that tell nothing
    ended = command("refit", f"run.dir={tmp_path}")
    assert ended.code == 0, ended.err
    again = read(tmp_path / "refit" / "teacher" / "manifest.json")["linear"]["settings"]
    assert {**again, "content_weight": 0} == chosen
