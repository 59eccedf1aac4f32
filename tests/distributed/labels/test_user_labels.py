"""Labels by user: what is stored is the teacher's, lists are drawn from it, and students of other seeds, batches and lists share it."""

import dataclasses

import pytest
import torch
from promptmm.core.artifact import manifest_digest, read_manifest
from promptmm.core.config import DistillationConfig
from promptmm.core.errors import InputError
from promptmm.core.train_pairs import TrainPairs
from promptmm.distributed.artifacts.teacher import read_revision
from promptmm.distributed.config import ClusterConfig
from promptmm.distributed.execution.label_pool import materialise
from promptmm.distributed.execution.local import LocalExecutor
from promptmm.distributed.labels import rankings
from promptmm.distributed.labels.files import labels_url
from promptmm.distributed.labels.rankings import open_rankings
from promptmm.distributed.labels.user_labels import UserLabels
from promptmm.distributed.messages import LabelJob
from promptmm.graph_store.dataset import open_dataset
from promptmm.jobs.settings import load_settings
from promptmm.jobs.verbs import run_verb

POOL = 25


@pytest.fixture(scope="module")
def dataset(taught_run):
    return open_dataset(str(taught_run / "dataset"))


@pytest.fixture
def made(dataset, fork_run, taught_run, monkeypatch):
    """Labels in several ranges of users, by encoding: the run's folder and the job."""
    monkeypatch.setattr(rankings, "USERS_A_RANGE", 64)

    def make(encoding):
        folder = fork_run(encoding, taught_run)
        config, count = DistillationConfig(num_uniform=5, num_top=3, top_depth=20), dataset.manifest["num_interactions"]["train"]
        job = LabelJob(
            str(folder / "dataset"),
            str(folder / "teacher"),
            0,
            config,
            256,
            2,
            count,
            0,
            scores=encoding,
            by="users",
            pool=POOL,
            draw_seed=7,
        )
        executor = LocalExecutor(ClusterConfig(executor="local"), str(folder), dataset)
        executor.rank(job.rankings)
        facts = executor.label(job, str(folder), 4, {})
        assert (facts["rows"], facts["layout"]) == (dataset.num_users, "users, 1")
        return str(folder), job

    return make


def close_to(found, expected, encoding):
    """Whether scores relative to a positive's are as close as the encoding of both allows, for values below 2^4 or users' ranges of 2^5."""
    return bool(((found - expected).abs() <= (2**-6 if encoding == "float16" else 2**-4)).all())


@pytest.mark.parametrize("encoding", ["float16", "uint8"])
@pytest.mark.parametrize("examples", ["interactions", "histories", "users"])
def test_lists_are_drawn_from_ranking_and_pool_with_the_teachers_scores(made, dataset, encoding, examples):
    folder, job = made(encoding)
    job = dataclasses.replace(job, examples=examples)
    vectors, train = read_revision(job.teacher_url, 0).vectors, dataset.csr("train")
    modalities, ranking = list(vectors.modal_item), open_rankings(job.rankings, dataset)[torch.arange(dataset.num_users)]
    labels = [labels for _, labels in UserLabels(folder, job, modalities, dataset).epoch(3)]
    users, candidates = torch.cat([each.users for each in labels]), torch.cat([each.candidates for each in labels])
    _, expected_users, positives = TrainPairs.of(train, job.draw_seed, examples).at(3, slice(0, job.num_examples))
    assert torch.equal(users, expected_users)
    assert torch.equal(candidates[:, 0], positives)
    assert (ranking[users][:, :, None] == candidates[:, None, 6:]).any(1).all()
    keys = train.rows * dataset.num_items + train.columns
    assert not torch.isin(users[:, None] * dataset.num_items + candidates[:, 1:], keys).any()
    scores = (vectors.user[users][:, None] * vectors.item[candidates]).sum(2)
    assert close_to(torch.cat([each.scores for each in labels]), scores - scores[:, :1], encoding)
    for number, modality in enumerate(modalities):
        scores = (vectors.modal_user[modality][users][:, None] * vectors.modal_item[modality][candidates]).sum(2)
        assert close_to(torch.cat([each.modal_scores[number] for each in labels]), scores - scores[:, :1], encoding)


def test_every_epoch_draws_anew_from_a_pool_that_stays(made, dataset):
    folder, job = made("float16")
    source, pools = UserLabels(folder, job, ["visual"], dataset), {}
    firsts = []
    for epoch in range(12):
        labels = [labels for _, labels in source.epoch(epoch)]
        users, drawn = torch.cat([each.users for each in labels]), torch.cat([each.candidates for each in labels])[:, 1:6]
        firsts.append(drawn[users.argsort(stable=True)])
        for user, items in zip(users.tolist(), drawn.tolist()):
            pools.setdefault(user, set()).update(items)
    assert not torch.equal(firsts[0], firsts[1])
    assert max(map(len, pools.values())) <= POOL
    assert sum(map(len, pools.values())) > 15 * len(pools)  # most of a pool's distinct items are drawn at some time


def test_shares_of_workers_and_other_students_read_the_same_labels(made, dataset):
    """Another batch, number of candidates, seed and depth of the ranking; the worker's shares make up the whole."""
    folder, job = made("uint8")

    def read(job):
        return [labels for _, labels in UserLabels(folder, job, ["visual"], dataset).epoch(0)]

    whole = read(job)
    shares = [read(dataclasses.replace(job, rank=rank, world_size=2)) for rank in range(2)]
    for step, parts in zip(whole, zip(*shares)):
        assert torch.equal(torch.cat([part.candidates for part in parts]), step.candidates)
        assert torch.equal(torch.cat([part.scores for part in parts]), step.scores)
    other = dataclasses.replace(job.config, num_uniform=2, num_top=0)
    found, vectors = read(dataclasses.replace(job, batch_size=100, draw_seed=9, config=other)), read_revision(job.teacher_url, 0).vectors
    assert {each.candidates.shape[1] for each in found} == {3}
    for each in found:
        scores = (vectors.user[each.users][:, None] * vectors.item[each.candidates]).sum(2)
        assert close_to(each.scores, scores - scores[:, :1], "uint8")
    deeper = dataclasses.replace(job.config, top_depth=21)
    with pytest.raises(InputError, match="top_depth is 20, 21 expected; run label again"):
        read(dataclasses.replace(job, config=deeper))


@pytest.mark.parametrize("change", [{"pool": 30}, {"seed": 1}])
def test_other_pools_are_refused(made, dataset, change):
    folder, job = made("float16")
    with pytest.raises(InputError, match=r"(pool is 25, 30|seed is 0, 1) expected; run label again"):
        UserLabels(folder, dataclasses.replace(job, **change), ["visual"], dataset)


def test_a_run_distils_from_labels_by_user(fork_run, taught_run, tiny_settings):
    folder = fork_run("by-user", taught_run)
    settings = tiny_settings(folder, "labels.by=users", "labels.pool=40", "cluster.executor=local", "run.redo=label")
    for verb in ("label", "distill"):
        run_verb(verb, dataclasses.replace(settings, run=dataclasses.replace(settings.run, redo="label" if verb == "label" else None)))
    manifest = read_manifest(labels_url(str(folder), 0), "labels")
    assert (manifest["pool"], manifest["layout"]) == (40, "users, 1")
    assert "epochs" not in manifest
    assert read_manifest(f"{folder}/training/student/model", "student-model")["lineage"]["labels"] == manifest_digest(manifest)


@pytest.mark.whole
def test_a_pool_of_actors_writes_the_same_files(made, dataset, ray_cluster, tmp_path, monkeypatch):
    _, job = made("uint8")
    monkeypatch.undo()  # other processes have ranges of the usual size
    here = LocalExecutor(ClusterConfig(executor="local"), str(tmp_path / "here"), dataset)
    assert materialise(job, str(tmp_path), 1, ClusterConfig(num_labelers=2), {}) == here.label(job, str(tmp_path / "here"), 1, {})
    assert read_manifest(labels_url(str(tmp_path), 0), "labels") == read_manifest(labels_url(str(tmp_path / "here"), 0), "labels")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["labels.mode=streamed"], "labels.by=users keeps labels once"),
        (["labels.compression=zstd"], "labels.compression=zstd is for files of labels by example, and labels.by=users maps its files"),
        (["distill.regime=inline"], "labels.by=users has no meaning with distill.regime=inline"),
    ],
)
def test_labels_by_user_are_refused_where_there_are_none(words, message):
    with pytest.raises(InputError, match=message):
        load_settings(None, ["labels.by=users", *words])


def test_streamed_labels_are_not_compressed():
    with pytest.raises(InputError, match=r"labels\.mode=streamed writes none; leave it out"):
        load_settings(None, ["labels.mode=streamed", "labels.compression=zstd"])
