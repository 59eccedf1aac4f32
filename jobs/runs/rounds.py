"""The rounds of distillation, for whoever trains them: Ray Train workers, or one process."""

from collections.abc import Callable
from typing import Any

from ...core.storage import has_artifact, join
from ...distributed.student_training import StudentJob
from ...distributed.teacher_artifact import revision_url
from ...graph_store.dataset import Dataset
from ..settings import Settings
from .compatibility import has_teacher
from .labels import has_labels, is_materialised
from .worker_jobs import student_job


def run_rounds(
    settings: Settings,
    dataset: Dataset,
    train: Callable[[StudentJob], None],
    tune: Callable[[StudentJob], None],
    make_labels: Callable[[int], object],
    *,
    service: Any = None,
    lines: Any = None,
    lineage: dict[str, str] | None = None,
) -> None:
    """Trains the student in rounds: labels at revision r feed it in round r, then the prompt is tuned against it.

    No tuning follows the last round. Rounds whose tuning has left its revision are not repeated.

    Args:
        settings: Of the run, with its engine.
        dataset: The run's.
        train: Trains the student until the end of a round.
        tune: Tunes the prompt after a round, and writes the next revision.
        make_labels: Writes the labels of a revision.
        service, lines, lineage: For the students' jobs (see `student_job`).
    """
    taught, epochs = has_teacher(settings, dataset), settings.student.train.epochs
    rounds = settings.distill.rounds if taught else 1
    for number in range(_rounds_done(settings, rounds), rounds):
        if taught and is_materialised(settings) and not has_labels(settings, number):
            make_labels(number)
        last, end = number + 1 == rounds, epochs * (number + 1) // rounds
        job = student_job(settings, dataset, number, stop_epoch=end, is_last=last, service=service, lines=lines, lineage=lineage)
        train(job)
        if not last:
            tune(job)


def _rounds_done(settings: Settings, rounds: int) -> int:
    """Counts the rounds whose tuning has left its revision."""
    done = 0
    while done + 1 < rounds and has_artifact(revision_url(join(settings.dir, "teacher"), done + 1)):
        done += 1
    return done
