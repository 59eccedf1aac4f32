"""The jobs that training workers and labelers are sent, made from a run's settings."""

import dataclasses

from ...core.artifact import read_manifest
from ...distributed.labels.files import labels_url
from ...distributed.messages import StudentJob, TeacherJob, student_reads_graph, teacher_reads_graph
from ...graph_store.dataset import Dataset
from ..settings import Settings
from .compatibility import has_teacher
from .imported_vectors import checksums


def samples(settings: Settings) -> bool:
    """Whether the sampled engine trains; `cluster.engine` is settled."""
    return settings.cluster.engine == "sampled"


def uses_graph(settings: Settings, stage: str) -> bool:
    """Whether the workers of a stage read from graph/.

    A worker in this process has the dataset itself, but for the sampled engine's structure.

    Args:
        settings: Of the run, with its engine.
        stage: "train-teacher", "distill" or "tune-prompt".
    """
    engine = settings.cluster.engine
    reads = {
        "train-teacher": teacher_reads_graph(engine, settings.teacher),
        "distill": student_reads_graph(engine, settings.distill),
        "tune-prompt": True,
    }
    return reads[stage] and (settings.cluster.executor == "ray" or samples(settings))


def teacher_job(settings: Settings, dataset: Dataset) -> TeacherJob:
    """Makes the job of a teacher's workers.

    Args:
        settings: Of the run, with its engine.
        dataset: The run's.
    """
    return TeacherJob(
        settings.dir, settings.evaluation, settings.cluster, settings.sampling, settings.run.seed, config=settings.teacher,
        lineage={"dataset": dataset.digest, **checksums(settings.teacher)}, trackers=tuple(settings.run.trackers),
    )  # fmt: skip


def student_job(
    settings: Settings,
    dataset: Dataset,
    revision: int,
    *,
    stop_epoch: int | None = None,
    is_last: bool = True,
    lineage: dict[str, str] | None = None,
) -> StudentJob:
    """Makes the job of a student's workers.

    Args:
        settings: Of the run, with its engine.
        dataset: The run's.
        revision: The prompt's revision that the labels carry.
        stop_epoch: Where this round ends; None: at the last epoch.
        is_last: Whether the student is written at the end.
        lineage: Checksums of what the student is made from.
    """
    labels = settings.labels
    if labels.run is not None and labels.seed is None:
        labels = dataclasses.replace(labels, seed=read_manifest(labels_url(labels.run, revision), "labels")["seed"])
    return StudentJob(
        settings.dir, settings.evaluation, settings.cluster, settings.sampling, settings.run.seed, config=settings.student,
        distill=dataclasses.replace(settings.distill, use_teacher=has_teacher(settings, dataset)), labels=labels,
        num_examples=dataset.manifest["num_interactions"]["train"], revision=revision,
        stop_epoch=settings.student.train.epochs if stop_epoch is None else stop_epoch, is_last=is_last, lineage=lineage or {},
        trackers=tuple(settings.run.trackers),
    )  # fmt: skip
