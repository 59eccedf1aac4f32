"""The jobs that training workers and labelers are sent, made from a run's settings."""

import dataclasses
from typing import Any

from ...core.config import SamplingConfig
from ...distributed.student_training import StudentJob
from ...distributed.teacher_training import TeacherJob
from ...graph_store.dataset import Dataset
from ..settings import Settings
from .compatibility import has_teacher


def sampling_of(settings: Settings) -> SamplingConfig | None:
    """Settings of neighbour blocks where the engine samples, else None."""
    return settings.sampling if settings.cluster.engine == "sampled" else None


def teacher_job(settings: Settings, dataset: Dataset, service: Any = None, lines: Any = None) -> TeacherJob:
    """Makes the job of a teacher's workers.

    Args:
        settings: Of the run, with its engine.
        dataset: The run's.
        service: The `GraphService` actor; None where the worker reads the dataset itself.
        lines: The `ProgressLines` actor, None where there is none.
    """
    return TeacherJob(
        settings.dir, settings.teacher, settings.evaluation, settings.cluster, settings.run.seed, service, lines,
        {"dataset": dataset.digest}, sampling_of(settings),
    )  # fmt: skip


def student_job(
    settings: Settings,
    dataset: Dataset,
    revision: int,
    *,
    stop_epoch: int | None = None,
    is_last: bool = True,
    service: Any = None,
    lines: Any = None,
    lineage: dict[str, str] | None = None,
) -> StudentJob:
    """Makes the job of a student's workers.

    Args:
        settings: Of the run, with its engine.
        dataset: The run's.
        revision: The prompt's revision that the labels carry.
        stop_epoch: Where this round ends; None: at the last epoch.
        is_last: Whether the student is written at the end.
        service: Where a resident teacher's graph and features are, None where there is no such teacher.
        lines: The `ProgressLines` actor, None where there is none.
        lineage: Checksums of what the student is made from.
    """
    distill = dataclasses.replace(settings.distill, use_teacher=has_teacher(settings, dataset))
    stop_epoch = settings.student.train.epochs if stop_epoch is None else stop_epoch
    return StudentJob(
        settings.dir, settings.student, distill, settings.labels, settings.evaluation, settings.cluster, settings.run.seed,
        dataset.manifest["num_interactions"]["train"], revision, stop_epoch, is_last, service, lines, lineage or {}, sampling_of(settings),
    )  # fmt: skip
