"""What the verbs ask of an executor."""

from typing import Protocol

from ...core.config import EvaluationConfig
from ..messages import LabelJob, RankingJob, StoredScores, StudentJob, TeacherJob, TuneJob


class Executor(Protocol):
    """Runs the jobs of one run, one after the other."""

    def run(self, job: TeacherJob | StudentJob | TuneJob) -> None:
        """Trains or tunes, from the last checkpoint on.

        Raises:
            InputError: inputs do not fit together, or a file is damaged.
            RunError: workers failed more often than allowed, or did not get their resources in time.
        """

    def rank(self, job: RankingJob) -> None:
        """Makes the rankings of a revision of the teacher; goes on after the ranges of users that an interrupted call has finished.

        Raises:
            RunError: the cluster had no room for a process that ranks within `cluster.start_timeout`.
        """

    def label(self, job: LabelJob, run_url: str, epochs: int, metadata: dict) -> dict:
        """Materialises labels/rev-<r>/; returns the manifest's facts with `bytes` and `rows`. `job.rankings` have to be there.

        Args:
            job: Of whole steps.
            run_url: The run's folder.
            epochs: Distinct epochs of labels.
            metadata: Further facts for the manifest.
        """
        ...

    def evaluate(self, scores: StoredScores, split: str, config: EvaluationConfig) -> dict[str, float]:
        """Full-ranking metrics of a split.

        Args:
            scores: The final scores of a trained model.
            split: "validation" or "test".
            config: Cutoffs and metrics.
        """
        ...
