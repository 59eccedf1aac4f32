"""Teachers that were trained elsewhere: their vectors are taken over as they are, evaluated and distilled from like any other's."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from promptmm.core.artifact import read_manifest
from promptmm.core.errors import InputError
from promptmm.core.ranking import evaluate
from promptmm.core.sides import SIDE_NAMES, SIDES
from promptmm.distributed.artifacts import teacher as artifact
from promptmm.distributed.artifacts.teacher import own_rows, read_revision
from promptmm.distributed.worker import Worker
from promptmm.graph_store.dataset import open_dataset
from promptmm.jobs.verbs import run_verb

LOCAL = "cluster.executor=local"
BY_SCORES = ("distill.list_weight=0", "distill.embedding_weight=0", "distill.score_weight=1")


@pytest.fixture
def export(tmp_path):
    """Writes vectors of a run's teacher with raw ids, in another order; returns the words that name the files."""

    def write(run, modal=True, scale=1.0, name="vectors"):
        dataset, vectors = open_dataset(f"{run}/dataset"), read_revision(f"{run}/teacher", 0).vectors
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for side, final, by_modality in zip(SIDES, (vectors.user, vectors.item), (vectors.modal_user, vectors.modal_item)):
            order = np.random.default_rng(side).permutation(len(final))
            tables = {"final": final * scale, **({f"modal.{m}": rows for m, rows in by_modality.items()} if modal else {})}
            columns = {column: list(rows.numpy()[order]) for column, rows in tables.items()}
            table = pa.table({SIDE_NAMES[side]: dataset.ids(side).take(pa.array(order)), **columns})
            pq.write_table(table, folder / f"{SIDE_NAMES[side]}s.parquet", row_group_size=40)
        return named(folder)

    return write


def named(folder):
    return ("teacher.kind=vectors", f"teacher.vectors.users={folder}/users.parquet", f"teacher.vectors.items={folder}/items.parquet",
            "teacher.hidden=[]", LOCAL)  # fmt: skip


def vectors_of(folder):
    return read_revision(str(folder / "teacher"), 0).vectors


def test_vectors_students_and_figures_are_those_of_the_run_that_they_came_from(taught_run, fork_run, tiny_settings, export, capfd):
    first, second = fork_run("first", taught_run), fork_run("second")
    words = export(first)
    for verb in ("distill", "evaluate"):
        run_verb(verb, tiny_settings(first, LOCAL))
    for verb in ("train-teacher", "label", "distill", "evaluate"):
        run_verb(verb, tiny_settings(second, *words))
    one, two = vectors_of(first), vectors_of(second)
    assert torch.equal(one.user, two.user)
    assert torch.equal(one.item, two.item)
    assert list(two.modal_item) == list(one.modal_item) == ["acoustic", "textual", "visual"]
    assert all(torch.equal(one.modal_user[m], two.modal_user[m]) for m in one.modal_user)
    teachers, students = zip(*((result["teacher"], result["student"]) for result in map(results_of, (first, second))))
    for one, two in (teachers, students):
        assert {split: one[split] for split in ("validation", "test")} == {split: two[split] for split in ("validation", "test")}
    said, manifest = capfd.readouterr().out, read_manifest(f"{second}/teacher", "teacher")
    assert "[teacher] vectors: reads vectors (final of 8, modal.acoustic of 8, modal.textual of 8, modal.visual of 8 columns)" in said
    assert "best: the start" in said
    assert manifest["best_value"] == pytest.approx(teachers[1]["validation"]["recall@20"])
    assert (manifest["best_epoch"], manifest["modalities"], manifest["num_parameters"]) == (-1, [], 8 * (150 + 90))
    assert manifest["imported"]["users"] == {"url": words[1].split("=")[1], "rows": 150, "unknown": 0, "without_vector": 0}


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_changed_files_are_noticed(taught_run, fork_run, tiny_settings, export):
    folder = fork_run("run")
    words = export(taught_run)
    run_verb("train-teacher", tiny_settings(folder, *words))
    before = vectors_of(folder).user
    export(taught_run)
    run_verb("train-teacher", tiny_settings(folder, *words))  # the same content
    export(taught_run, scale=2.0)
    with pytest.raises(InputError, match=r"train-teacher was started here with vectors\..*users\.parquet=\w+ \(now \w+\)"):
        run_verb("train-teacher", tiny_settings(folder, *words))
    run_verb("train-teacher", tiny_settings(folder, *words, "run.redo=train-teacher"))
    assert torch.equal(vectors_of(folder).user, 2 * before)


def test_losses_by_modality_ask_for_columns_by_modality(taught_run, fork_run, tiny_settings, export):
    folder, words = fork_run("run"), export(taught_run, modal=False)
    with pytest.raises(
        InputError, match=r"was trained elsewhere, and its files have no columns modal\.<modality> for distill\.list_weight"
    ):
        run_verb("pipeline", tiny_settings(folder, *words))
    run_verb("train-teacher", tiny_settings(folder, *words))
    with pytest.raises(InputError, match=r"no columns modal\.<modality> for distill\.list_weight=0\.5 .*set distill\.list_weight=0"):
        run_verb("label", tiny_settings(folder, *words))
    for verb in ("label", "distill"):
        run_verb(verb, tiny_settings(folder, *words, *BY_SCORES, "student.warm_start=true", "distill.num_student=2"))
    assert vectors_of(folder).modal_item == {}


def test_scores_are_scaled_where_that_is_asked_for(taught_run, fork_run, tiny_settings, export, capfd):
    words, given = export(taught_run, scale=1e-3), vectors_of(taught_run)
    plain, scaled = fork_run("plain"), fork_run("scaled")
    run_verb("train-teacher", tiny_settings(plain, *words))
    assert "teacher.vectors.unit_scores=true scales them" in capfd.readouterr().out
    run_verb("train-teacher", tiny_settings(scaled, *words, "teacher.vectors.unit_scores=true"))
    assert "unit_scores" not in capfd.readouterr().out
    assert torch.equal(vectors_of(plain).user, given.user * 1e-3)
    found = vectors_of(scaled)
    scores = found.user.double() @ found.item.double().T
    torch.testing.assert_close(scores.std(1, correction=0), torch.ones(150, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.nn.functional.normalize(found.user), torch.nn.functional.normalize(given.user))
    values = [read_manifest(f"{folder}/teacher", "teacher")["best_value"] for folder in (plain, scaled)]
    assert values[0] == values[1]


def test_an_ensemble_has_it_among_its_components(taught_run, fork_run, tiny_settings, export, capfd):
    """Beside one that is fitted; changed files are read again, and the other component stays as it is."""
    folder, (_, *files, _, local) = fork_run("run"), export(taught_run)
    of_files = ", ".join(f"{word.split('=')[0].rpartition('.')[2]}: {word.split('=')[1]}" for word in files)
    components = f"teacher.components={{spectral: {{linear: {{rank: 8, trials: 1}}}}, mine: {{kind: vectors, vectors: {{{of_files}}}}}}}"
    words = ("teacher.kind=ensemble", components, "teacher.hidden=[]", local)
    run_verb("train-teacher", tiny_settings(folder, *words))
    manifest, whole = read_manifest(f"{folder}/teacher", "teacher"), vectors_of(folder)
    assert set(manifest["components"]) == {"spectral", "mine"}
    assert list(whole.modal_item) == ["acoustic", "textual", "visual"]
    assert torch.equal(read_revision(f"{folder}/components/mine/teacher", 0).vectors.user, vectors_of(taught_run).user)
    before = (folder / "components/spectral/teacher/manifest.json").stat().st_mtime_ns
    export(taught_run, scale=-1.0)
    (folder / "stages/train-teacher.json").unlink()
    run_verb("train-teacher", tiny_settings(folder, *words))
    assert torch.equal(read_revision(f"{folder}/components/mine/teacher", 0).vectors.user, -vectors_of(taught_run).user)
    assert (folder / "components/spectral/teacher/manifest.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"teacher\.components\.mine\.vectors\.users=/nowhere: no such file"):
        run_verb("train-teacher", tiny_settings(folder, *(word.replace(files[0].split("=")[1], "/nowhere") for word in words)))


@pytest.mark.parametrize("split", ["validation", "nothing"])
def test_shards_are_written_and_validated_by_the_workers_that_read_them(taught_run, fork_run, tiny_settings, export, monkeypatch, split):
    """Tables of several shards; without a validation split nothing but the own shards is kept."""
    from promptmm.distributed.execution.local import LocalExecutor
    from promptmm.jobs.runs.worker_jobs import teacher_job

    folder, words = fork_run("run"), export(taught_run)
    monkeypatch.setattr(artifact, "ROWS_A_SHARD", 64)
    settings, dataset = tiny_settings(folder, *words), open_dataset(f"{folder}/dataset").without("test")
    dataset = dataset if split == "validation" else dataset.without("validation")
    LocalExecutor(settings.cluster, settings.dir, dataset).run(teacher_job(settings, dataset))
    found, manifest = vectors_of(folder), read_manifest(f"{folder}/teacher", "teacher")
    assert sorted(name for name in read_manifest(f"{folder}/teacher/rev-0", "teacher-vectors")["files"] if name.startswith("user-")) == [
        f"user-{number:05d}.safetensors" for number in range(3)
    ]
    expected = vectors_of(taught_run)
    assert torch.equal(found.user, expected.user)
    value = evaluate(found.user, found.item, open_dataset(f"{folder}/dataset").csr("validation"), dataset.csr("train"), [20])["recall@20"]
    assert manifest["best_value"] == (pytest.approx(value) if split == "validation" else None)


def test_workers_share_the_shards(monkeypatch):
    monkeypatch.setattr(artifact, "ROWS_A_SHARD", 4)
    shares = [own_rows(10, Worker(rank, 2, torch.device("cpu"), ("here",) * 2)) for rank in range(2)]
    assert shares[0].nonzero().squeeze(1).tolist() == [0, 1, 2, 3, 8, 9]
    assert torch.equal(shares[1], ~shares[0])


@pytest.mark.slow
def test_two_workers_of_either_engine_make_the_same_artifact(ray_cluster, taught_run, fork_run, tiny_settings, export):
    """Through Ray, without graph servers: the vectors are read, and no graph."""
    words = export(taught_run)[:-1]
    for engine in ("full", "sampled"):
        folder = fork_run(engine)
        run_verb("train-teacher", tiny_settings(folder, *words, "cluster.num_workers=2", f"cluster.engine={engine}"))
        assert torch.equal(vectors_of(folder).user, vectors_of(taught_run).user)
        assert read_manifest(f"{folder}/teacher", "teacher")["best_value"] == pytest.approx(
            read_manifest(f"{taught_run}/teacher", "teacher")["best_value"]
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teacher.kind=vectors"], r"teacher\.vectors\.users is not set, and teacher\.kind=vectors reads vectors from there"),
        (["teacher.vectors.users=u.parquet"], r"teacher\.vectors\.users=.*/u\.parquet is not read by teacher\.kind=promptmm"),
        (["teacher.kind=mf", "teacher.vectors.unit_scores=true"], r"teacher\.vectors\.unit_scores=True is not read by teacher\.kind=mf"),
        (["teacher.kind=vectors", "teacher.vectors.users= "], r"teacher\.vectors\.users"),
        (["distill.regime=inline"], "has no prompt to tune"),
        (["cluster.micro_batches=2"], "which is not trained in steps"),
        (["teacher.linear.rank=8"], r"teacher\.linear\.rank=8 is not read by teacher\.kind=vectors"),
        (["teacher.components={mine: {kind: vectors}}", "teacher.kind=ensemble"], r"teacher\.components\.mine\.vectors\.users is not set"),
    ],
)  # fmt: skip
def test_settings_that_have_no_meaning_with_it(tmp_path, tiny_settings, words, message):
    given = () if any(word.startswith("teacher.") and "linear" not in word for word in words) else named(tmp_path)
    with pytest.raises(InputError, match=message):
        tiny_settings(tmp_path / "run", "teacher.hidden=[]", *given, *words)


def test_a_relative_path_is_the_command_s_own(tmp_path, tiny_settings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = tiny_settings(tmp_path / "run", "teacher.kind=vectors", "teacher.hidden=[]", "teacher.vectors.users=a/u.parquet",
                             "teacher.vectors.items=s3://bucket/i.parquet")  # fmt: skip
    assert settings.teacher.vectors.urls == (f"{tmp_path}/a/u.parquet", "s3://bucket/i.parquet")
