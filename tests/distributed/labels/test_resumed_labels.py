"""Labelling that was interrupted goes on after the files that are complete, and ends with the same labels."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
from promptmm.core.artifact import has_artifact, read_manifest
from promptmm.distributed.config import ClusterConfig
from promptmm.distributed.execution.local import LocalExecutor
from promptmm.distributed.labels import rankings
from promptmm.distributed.labels.files import labels_url
from promptmm.graph_store.dataset import open_dataset
from promptmm.jobs.runs.worker_jobs import student_job

LOCAL, LINEAGE = ClusterConfig(executor="local"), {"teacher": "of a digest"}


@pytest.fixture
def labelled(fork_run, taught_run, tiny_settings, monkeypatch):
    """Makes a run that has a teacher and rankings and no labels: its folder, its dataset and the job of its labels."""
    monkeypatch.setattr(rankings, "USERS_A_RANGE", 64)

    def make(by):
        folder = fork_run(by, taught_run)
        dataset = open_dataset(str(folder / "dataset"))
        job = student_job(tiny_settings(folder, f"labels.by={by}", "cluster.executor=local"), dataset, 0).label_job()
        executor = LocalExecutor(LOCAL, str(folder), dataset)
        executor.rank(job.rankings)
        return folder, executor, job

    return make


def written(folder: Path) -> dict[str, tuple[str, int]]:
    """The checksum and the time of writing of every file of labels that has its facts beside it, or is in the manifest."""
    root = Path(labels_url(str(folder), 0))
    paths = [path for path in root.rglob("*") if path.suffix in (".arrow", ".safetensors") and not path.name.startswith(".")]
    made = [path for path in paths if path.with_suffix(".json").exists() or has_artifact(str(root))]
    return {path.relative_to(root).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in made}


@pytest.mark.parametrize(("by", "labeler", "count"), [("examples", "Labeler", 9), ("users", "UserLabeler", 3)])
def test_a_killed_labelling_goes_on_where_it_was(labelled, kill_when, by, labeler, count):
    folder, executor, job = labelled(by)
    whole = executor.label(job, str(folder), 3, LINEAGE)
    expected = {name: digest for name, (digest, _) in written(folder).items()}
    assert len(expected) == count
    script = f"""
import time
from promptmm.distributed.config import ClusterConfig
from promptmm.distributed.execution.local import LocalExecutor
from promptmm.distributed.labels import labeler, rankings, user_labels
from promptmm.distributed.messages import LabelJob
from promptmm.core.config import DistillationConfig
from promptmm.graph_store.dataset import open_dataset
rankings.USERS_A_RANGE = 64
kind = {labeler!r}
kind = getattr(labeler if kind == "Labeler" else user_labels, kind)
write, done = kind.write, []
def slow(self, url, work):
    write(self, url, work)
    done.append(work)
    time.sleep(600 if len(done) == 2 else 0)
kind.write = slow
executor = LocalExecutor(ClusterConfig(executor="local"), {str(folder)!r}, open_dataset({job.dataset_url!r}))
executor.label({job!r}, {str(folder)!r}, 3, {LINEAGE!r})
"""
    has_begun = Path(labels_url(str(folder), 0), "begun.json").exists  # the labels of before are gone then
    kill_when(script, lambda: has_begun() and len(written(folder)) >= 2)
    begun = written(folder)
    assert executor.label(job, str(folder), 3, LINEAGE) == whole
    after = written(folder)
    assert {name: after[name] for name in begun} == begun  # neither labelled nor written again
    assert {name: digest for name, (digest, _) in after.items()} == expected
    assert set(read_manifest(labels_url(str(folder), 0), "labels")["files"]) == set(expected)


@pytest.mark.parametrize("change", ["teacher", "scores"])
def test_labels_that_were_begun_of_something_else_are_made_again(labelled, change, monkeypatch):
    from promptmm.distributed.labels.labeler import Labeler

    folder, executor, job = labelled("examples")
    write = Labeler.write

    def fail(self, url, work):
        if work["epoch"] == 1:
            raise OSError("no space left on device")
        write(self, url, work)

    monkeypatch.setattr(Labeler, "write", fail)
    with pytest.raises(OSError, match="no space left"):
        executor.label(job, str(folder), 3, LINEAGE)
    begun = written(folder)
    assert begun
    monkeypatch.setattr(Labeler, "write", write)
    other = dataclasses.replace(job, scores="uint8") if change == "scores" else job
    executor.label(other, str(folder), 3, {"teacher": "another"} if change == "teacher" else LINEAGE)
    assert all(written(folder)[name][1] != at for name, (_, at) in begun.items())
