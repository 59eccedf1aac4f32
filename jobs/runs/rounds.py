"""The rounds of distillation, whatever runs them."""

from ...core.artifact import has_artifact
from ...core.storage import join
from ...distributed.artifacts.teacher import revision_url
from ...distributed.execution.base import Executor
from ...distributed.messages import TuneJob
from ...graph_store.dataset import Dataset
from ..settings import Settings
from .compatibility import has_teacher
from .labels import has_labels, is_materialised, write_labels, write_rankings
from .worker_jobs import student_job


def run_rounds(settings: Settings, dataset: Dataset, executor: Executor, lineage: dict[str, str]) -> None:
    """Trains the student in rounds: labels at revision r feed it in round r, then the prompt is tuned against it.

    No tuning follows the last round. Rounds whose tuning has left its revision are not repeated.

    Args:
        settings: Of the run, with its engine.
        dataset: The run's.
        executor: Runs the jobs.
        lineage: Checksums of what the student is made from.
    """
    taught, epochs = has_teacher(settings, dataset), settings.student.train.epochs
    rounds = settings.distill.rounds if taught else 1
    for number in range(_rounds_done(settings, rounds), rounds):
        if taught and is_materialised(settings):
            if not has_labels(settings, number):
                write_labels(settings, dataset, number, executor)
        elif taught and not settings.distill.has_resident_teacher:
            write_rankings(settings, dataset, number, executor)
        last, end = number + 1 == rounds, epochs * (number + 1) // rounds
        job = student_job(settings, dataset, number, stop_epoch=end, is_last=last, lineage=lineage)
        executor.run(job)
        if not last:
            executor.run(TuneJob(job))


def _rounds_done(settings: Settings, rounds: int) -> int:
    """Counts the rounds whose tuning has left its revision."""
    done = 0
    while done + 1 < rounds and has_artifact(revision_url(join(settings.dir, "teacher"), done + 1)):
        done += 1
    return done
