"""The rounds of distillation, whatever runs them."""

from collections.abc import Callable

from ...core.errors import InputError
from ...distributed.execution.base import Executor
from ...distributed.messages import StudentJob, TuneJob
from ...graph_store.dataset import Dataset
from ..settings import Settings
from .compatibility import has_teacher
from .labels import has_labels, is_materialised, write_labels, write_rankings
from .round_states import DISTIL, DONE, LABEL, TUNE, Rounds
from .worker_jobs import samples, student_job


def run_rounds(settings: Settings, dataset: Dataset, executor: Executor, lineage: dict[str, str]) -> int:
    """Trains the student in rounds: labels at revision r feed it in round r, then the prompt is tuned against it.

    Every step is recorded before it begins (see `round_states.py`), and one that is complete is not repeated. Returns the number of rounds.

    Args:
        settings: Of the run, with its engine.
        dataset: The run's.
        executor: Runs the jobs.
        lineage: Checksums of what the student is made from.

    Raises:
        InputError: the record of the rounds, the revisions and the student's checkpoints do not fit together.
    """
    taught, epochs = has_teacher(settings, dataset), settings.student.train.epochs
    rounds = Rounds.open(settings, taught)

    def label(revision: int) -> None:
        if taught and is_materialised(settings):
            if not has_labels(settings, revision):
                write_labels(settings, dataset, revision, executor)
        elif taught and not settings.distill.has_resident_teacher:
            write_rankings(settings, dataset, revision, executor)

    def distil(revision: int) -> None:
        executor.run(round_job(revision))

    def tune(revision: int) -> None:
        if samples(settings):  # candidates are drawn from the rankings of the revision
            write_rankings(settings, dataset, revision, executor)
        executor.run(TuneJob(round_job(revision)))

    def round_job(revision: int) -> StudentJob:
        last, end = revision + 1 == rounds.number, epochs * (revision + 1) // rounds.number
        return student_job(settings, dataset, revision, stop_epoch=end, is_last=last, lineage=lineage)

    work: dict[str, Callable[[int], None]] = {LABEL: label, DISTIL: distil, TUNE: tune}
    try:
        while rounds.state.step != DONE:
            _say(rounds)
            work[rounds.state.step](rounds.state.revision)
            rounds = rounds.advance()
    except InputError:
        rounds.withdraw()
        raise
    return rounds.number


def _say(rounds: Rounds) -> None:
    """Says which round begins, and when the prompt is tuned; nothing where there is a single round."""
    step, revision = rounds.state.step, rounds.state.revision
    what = {
        DISTIL: f"the student learns from revision {revision} of the prompt",
        TUNE: f"the prompt is tuned to revision {revision + 1}",
    }.get(step)
    if what is not None and rounds.number > 1:
        print(f"[distill] round {revision + 1} of {rounds.number}: {what}", flush=True)
