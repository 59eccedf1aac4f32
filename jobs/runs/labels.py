"""The labels of a run: whether they are written, and writing those of a revision, with the rankings that they are drawn from."""

import time
from dataclasses import dataclass

from ...core.artifact import has_artifact, read_manifest
from ...core.storage import join
from ...distributed.artifacts.teacher import revision_digest
from ...distributed.execution.base import Executor
from ...distributed.labels.files import labels_url
from ...distributed.labels.rankings import has_rankings
from ...graph_store.dataset import Dataset
from ..settings import Settings
from .worker_jobs import student_job


@dataclass(frozen=True)
class WrittenLabels:
    """Labels of a revision that were written: their bytes, and rows (examples of all epochs, or users)."""

    bytes: int
    rows: int


def is_materialised(settings: Settings) -> bool:
    """Whether labels are written before the student trains; else they are made while it does."""
    return settings.distill.regime == "rounds" and settings.labels.mode == "materialised"


def has_labels(settings: Settings, revision: int) -> bool:
    """Whether the labels of a revision are complete in the run's folder; of a later one than 0, those of the revision that is there.

    Labels of revision 0 are the stage's, whose record says what they were made with; a student refuses those of another teacher.
    """
    url = labels_url(settings.teacher_dir, revision)
    if not has_artifact(url) or not revision:
        return has_artifact(url)
    made_by = read_manifest(url, "labels").get("teacher")
    return made_by is None or made_by == revision_digest(join(settings.teacher_dir, "teacher"), revision)


def write_rankings(settings: Settings, dataset: Dataset, revision: int, executor: Executor) -> None:
    """Makes the teacher's rankings at a revision that candidates are drawn from, unless none are or they are there.

    Raises:
        RunError: the cluster had no room for a process that ranks within `cluster.start_timeout`.
    """
    job = student_job(settings, dataset, revision).label_job().rankings
    if job is None or has_rankings(job, dataset):
        return
    started = time.monotonic()
    executor.rank(job)
    seconds = time.monotonic() - started
    print(
        f"[label] revision {revision}: the best {job.depth} unseen items of {dataset.num_users:,} users ranked in {seconds:.1f} s",
        flush=True,
    )


def write_labels(settings: Settings, dataset: Dataset, revision: int, executor: Executor) -> WrittenLabels:
    """Writes the labels of a revision to labels/rev-<r>/, and says how many; makes the rankings first that they are drawn from.

    Raises:
        RunError: the cluster had no room for a labeler within `cluster.start_timeout`.
    """
    write_rankings(settings, dataset, revision, executor)
    job = student_job(settings, dataset, revision).label_job()
    lineage = {"teacher": revision_digest(join(settings.dir, "teacher"), revision)}
    facts = executor.label(job, settings.dir, settings.labels.epochs, lineage)
    what = f"{facts['rows']:,} users" if job.by == "users" else f"{facts['rows']:,} examples in {facts['epochs']} epochs"
    print(f"[label] revision {revision}: {what}, {facts['bytes'] / 2**20:.1f} MiB", flush=True)
    return WrittenLabels(facts["bytes"], facts["rows"])
