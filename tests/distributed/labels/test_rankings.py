"""The teacher's rankings: made once by ranges of users, from where they were interrupted, and read by every labeler."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from promptmm.core.artifact import read_manifest, sealed
from promptmm.core.errors import InputError
from promptmm.core.graph import Csr
from promptmm.core.ranking import top_unseen
from promptmm.core.storage import read_json, write_json
from promptmm.distributed.artifacts.teacher import read_revision
from promptmm.distributed.labels import rankings
from promptmm.distributed.labels.labeler import Labeler
from promptmm.distributed.labels.rankings import has_rankings, open_rankings, rank_here, rankings_url
from promptmm.graph_store.dataset import open_dataset
from promptmm.jobs.runs.worker_jobs import student_job
from promptmm.jobs.verbs import run_verb

LOCAL = "cluster.executor=local"


@pytest.fixture(scope="module")
def dataset(taught_run):
    return open_dataset(str(taught_run / "dataset"))


@pytest.fixture
def label_job(taught_run, fork_run, tiny_settings, dataset):
    """The job of labels of a copy of the run, whose teacher has not ranked anything yet."""
    folder = fork_run("ranked", taught_run)
    shutil.rmtree(folder / "teacher/rev-0/rankings")
    return student_job(tiny_settings(folder, LOCAL), dataset, 0).label_job()


@pytest.fixture
def small_ranges(monkeypatch):
    monkeypatch.setattr(rankings, "USERS_A_RANGE", 64)


def expected(job, dataset):
    """All users ranked at once."""
    vectors, train = read_revision(job.teacher_url, 0).vectors, dataset.csr("train")
    return top_unseen(vectors.user, vectors.item, train, train, job.depth)


def files(job):
    """The rankings' files: what is in them and when they were written, by name."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(rankings_path(job).glob("*.safetensors"))}


def rankings_path(job):
    return Path(rankings_url(job))


def test_ranges_make_up_the_ranking_of_all_users(label_job, dataset, small_ranges):
    job = label_job.rankings
    rank_here(job, dataset)
    assert sorted(p.name for p in rankings_path(job).iterdir()) == [
        *(f"items-{n:05d}.safetensors" for n in range(3)),
        "manifest.json",
        *(f"scores-{n:05d}.safetensors" for n in range(3)),
    ]
    wanted = expected(job, dataset)
    assert wanted.shape[1] < job.depth == 100  # the catalog has 90 items, and the busiest user has seen some
    users = torch.randperm(dataset.num_users, generator=torch.Generator().manual_seed(0))
    assert torch.equal(open_rankings(job, dataset)[users], wanted[users])
    assert torch.equal(open_rankings(dataclasses.replace(job, depth=3), dataset)[users], wanted[users, :3])


def test_rankings_have_the_scores_of_their_items(label_job, dataset, small_ranges):
    rank_here(label_job.rankings, dataset)
    found, vectors = open_rankings(label_job.rankings, dataset, has_scores=True), read_revision(label_job.teacher_url, 0).vectors
    users = torch.randperm(dataset.num_users, generator=torch.Generator().manual_seed(0))
    items = found[users]
    sides = [(vectors.user, vectors.item), *((vectors.modal_user[m], vectors.modal_item[m]) for m in vectors.modal_user)]
    wanted = [(of_users[users][:, None] * of_items[items]).sum(2) for of_users, of_items in sides]
    assert len(found.scores_of(users)) == len(wanted) > 1
    for scores, expected_scores in zip(found.scores_of(users), wanted):
        torch.testing.assert_close(scores, expected_scores, rtol=1e-5, atol=1e-6)
    places = torch.randint(found.width, (users.numel(), 4), generator=torch.Generator().manual_seed(1))
    for scores, expected_scores in zip(found.scores_at(users, places), wanted):
        torch.testing.assert_close(scores, expected_scores.gather(1, places), rtol=1e-5, atol=1e-6)


def test_rankings_of_an_earlier_version_are_made_again(label_job, dataset):
    job = label_job.rankings
    rank_here(job, dataset)
    path = f"{rankings_url(job)}/manifest.json"
    manifest = read_json(path)
    del manifest["made_with"]["layout"]
    write_json(path, sealed(manifest))
    assert not has_rankings(job, dataset)
    rank_here(job, dataset)
    assert has_rankings(job, dataset)


def test_a_gpu_that_is_not_there_is_named(label_job, dataset):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for make in (rank_here, lambda job, dataset: Labeler(dataclasses.replace(label_job, device="cuda"), dataset)):
        with pytest.raises(
            InputError, match=r"cluster.gpus_per_labeler: torch finds no GPU in this process; set cluster.gpus_per_labeler=0"
        ):
            make(dataclasses.replace(label_job.rankings, device="cuda"), dataset)


def test_labels_are_those_of_one_range(label_job, dataset, taught_run, small_ranges, tiny_settings):
    whole = Labeler(student_job(tiny_settings(taught_run, LOCAL), dataset, 0).label_job(), dataset).labels(1, 0)
    rank_here(label_job.rankings, dataset)
    labels = Labeler(label_job, dataset).labels(1, 0)
    assert torch.equal(labels.candidates, whole.candidates)
    assert torch.equal(labels.scores, whole.scores)


def test_a_killed_ranking_goes_on_where_it_was(label_job, dataset, small_ranges, kill_when):
    job = label_job.rankings
    script = f"""
import time
from promptmm.distributed.labels import rankings
from promptmm.distributed.messages import RankingJob
from promptmm.graph_store.dataset import open_dataset
rankings.USERS_A_RANGE = 64
write = rankings.Ranker.write
def slow(self, number):
    write(self, number)
    time.sleep(600 if number else 0)
rankings.Ranker.write = slow
rankings.rank_here({job!r}, open_dataset({job.dataset_url!r}))
"""
    kill_when(script, (rankings_path(job) / "scores-00001.json").exists)
    begun = files(job)
    assert not has_rankings(job, dataset)
    rank_here(job, dataset)
    after = files(job)
    assert {name: after[name] for name in begun} == begun  # neither ranked again nor written again
    assert torch.equal(open_rankings(job, dataset)[torch.arange(dataset.num_users)], expected(job, dataset))


def test_what_another_teacher_began_is_ranked_again(label_job, dataset, small_ranges, monkeypatch):
    job, write = label_job.rankings, rankings.Ranker.write

    def fail(self, number):
        if number == 2:
            raise OSError("no space left on device")
        write(self, number)

    monkeypatch.setattr(rankings.Ranker, "write", fail)
    with pytest.raises(OSError, match="no space left"):
        rank_here(job, dataset)
    begun = rankings_path(job) / "begun.json"
    write_json(str(begun), {**read_json(str(begun)), "teacher": "another"})
    ranked = []
    monkeypatch.setattr(rankings.Ranker, "write", lambda self, number: (ranked.append(number), write(self, number)))
    rank_here(job, dataset)
    assert ranked == [0, 1, 2]


def test_deeper_rankings_serve_and_less_deep_ones_do_not(label_job, dataset):
    job = label_job.rankings
    rank_here(dataclasses.replace(job, depth=20), dataset)
    assert has_rankings(dataclasses.replace(job, depth=10), dataset)
    assert not has_rankings(job, dataset)
    with pytest.raises(InputError, match=r"no rankings of this teacher's 100 best items here; make them with run\.redo=label"):
        Labeler(label_job, dataset)
    rank_here(job, dataset)
    assert read_manifest(rankings_url(job), "rankings")["depth"] == 100


def test_a_damaged_range_is_refused(label_job, dataset):
    rank_here(label_job.rankings, dataset)
    file = rankings_path(label_job.rankings) / "items-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(
        InputError, match=r"items-00000.safetensors: checksum does not match the manifest .* make the rankings again, with run.redo=label"
    ):
        Labeler(label_job, dataset)


def test_students_read_the_items_alone(label_job, dataset):
    """A student on another host would fetch the scores, which are several times as large, for nothing."""
    rank_here(label_job.rankings, dataset)
    (rankings_path(label_job.rankings) / "scores-00000.safetensors").unlink()
    assert torch.equal(open_rankings(label_job.rankings, dataset)[torch.arange(dataset.num_users)], expected(label_job.rankings, dataset))
    with pytest.raises(InputError, match=r"scores-00000.safetensors: missing"):
        Labeler(label_job, dataset)


@pytest.mark.parametrize("by", ["examples", "users"])
def test_labels_of_other_rankings_are_refused(by, label_job, dataset, tiny_settings):
    """Places in rankings that were made again, as on another processor, could stand for other items."""
    folder = Path(label_job.teacher_url).parent
    run_verb("label", tiny_settings(folder, LOCAL, "run.redo=label", f"labels.by={by}"))
    path = rankings_path(label_job.rankings) / "manifest.json"
    manifest = read_json(str(path))
    manifest["files"]["scores-00000.safetensors"]["sha256"] = "0" * 64
    write_json(str(path), sealed(manifest))
    with pytest.raises(InputError, match=r"refer to places in other rankings than .* make the labels again with run.redo=label"):
        run_verb("distill", tiny_settings(folder, LOCAL, "run.redo=distill", f"labels.by={by}"))


@pytest.mark.parametrize("shard", [32, 50])
def test_items_in_shards_are_ranked_as_all_at_once(shard, label_job, dataset, small_ranges, monkeypatch):
    monkeypatch.setattr(rankings, "rows_a_shard", lambda num_items, row_bytes: shard)
    rank_here(label_job.rankings, dataset)
    users, wanted = torch.arange(dataset.num_users), expected(label_job.rankings, dataset)
    assert torch.equal(open_rankings(label_job.rankings, dataset)[users], wanted)


def test_a_user_who_has_seen_everything_is_named(label_job, dataset, monkeypatch):
    rows, columns = torch.tensor([0, *[7] * 90, 9]), torch.tensor([3, *range(90), 4])
    everything = Csr.from_pairs(rows, columns, dataset.num_users, 90)
    monkeypatch.setattr(type(dataset), "rows", lambda self, split: everything)
    with pytest.raises(InputError, match="user index 7 has seen all 90 items in train"):
        rank_here(label_job.rankings, dataset)


def test_a_run_ranks_once(label_job, dataset, tiny_settings, capsys):
    """Students of streamed labels read what was ranked for labels that were written; run.redo=label mends a damaged file."""
    folder = Path(label_job.teacher_url).parent
    run_verb("label", tiny_settings(folder, LOCAL, "run.redo=label"))
    assert "unseen items of 150 users ranked" in capsys.readouterr().out
    before = files(label_job.rankings)
    for more in ([], ["student.train.epochs=4", "run.redo=distill"]):
        run_verb("distill", tiny_settings(folder, LOCAL, "labels.mode=streamed", *more))
    assert files(label_job.rankings) == before
    assert "users ranked" not in capsys.readouterr().out
    damaged = rankings_path(label_job.rankings) / "items-00000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    run_verb("label", tiny_settings(folder, LOCAL, "run.redo=label"))
    assert files(label_job.rankings)["items-00000.safetensors"][0] == before["items-00000.safetensors"][0]
