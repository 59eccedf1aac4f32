"""Tunes the prompt between two rounds of labels, against a student that stays fixed (docs/method.md 4)."""

from collections.abc import Callable

from torch import Tensor

from ...core.artifact import read_manifest
from ...core.config import TeacherConfig
from ...core.objectives import CandidateRequest, Labels, StudentSide
from ...core.sampling import UserWeights
from ...core.scoring import candidate_scores
from ..artifacts.teacher import teacher_config_of
from ..engines.examples import Examples
from ..loop.totals import total_of
from ..messages import StudentJob
from ..worker import Worker
from .student import StudentTask
from .tuning import PromptTuner


def resident_config(job: StudentJob) -> TeacherConfig:
    """Returns the settings of the run's trained teacher, for which the catalog of prompt-tuning is built."""
    return teacher_config_of(read_manifest(job.teacher_url, "teacher"))


def tune_prompt(
    job: StudentJob, worker: Worker, tuner: PromptTuner, student: StudentTask, vectors: tuple[Tensor, Tensor], epochs: int,
    show: Callable[[str], None],
) -> None:  # fmt: skip
    """Tunes the prompt and writes the next revision of the teacher's vectors; a collective call.

    Args:
        job: The job of the round that has just ended.
        worker: This worker.
        tuner: The teacher at the round's revision.
        student: The student's task; its decoders take part in the loss.
        vectors: The student's final vectors of users and items, from the newest checkpoint.
        epochs: The number of epochs that the student has been trained for.
        show: Shows a line to the person who started the run.
    """
    user_vectors, item_vectors = (rows.detach() for rows in vectors)
    decoders = student.decoders.requires_grad_(False)
    examples = Examples.of(worker, tuner.graph.users, job.train, job.seed, examples=job.config.examples, in_memory=True)
    balance = UserWeights.of(examples.train.pointers, job.distill.user_balance)
    learner = tuner.learner(worker)
    if job.distill.num_student:
        student.rank_own(examples, (user_vectors, item_vectors))
    for number in range(job.distill.tuning_steps):
        epoch, step = epochs + number // examples.num_steps, number % examples.num_steps
        indices, users, positives = examples.of_step(epoch, step, examples.share_of(step))
        rows, unseen = examples.unseen_of(users)
        candidates = tuner.candidates(CandidateRequest(rows, positives, indices, unseen, job.seed, epoch))
        if student.own is not None:
            candidates = student.own.extend(Labels(users, candidates), indices, epoch).candidates
        unique, count = worker.share_of_distinct(positives)
        scores = candidate_scores(user_vectors, item_vectors, users, candidates)
        share = examples.size_of(step) / worker.world_size
        weights = balance(users) if balance else None
        side = StudentSide(scores, item_vectors, unique, decoders, share, count / worker.world_size, weights)
        loss = total_of(tuner.terms(side, users, candidates, unique))
        worker.check_finite(loss, f"prompt-tuning step {number} of revision {job.revision}")
        learner.zero_grad()
        loss.backward()
        learner.step()
    tuner.write(worker, job.teacher_url, job.revision + 1, {"lineage": job.lineage, "tuned_after_epoch": epochs})
    if worker.is_first:
        show(f"[student] prompt tuned for {job.distill.tuning_steps} steps: revision {job.revision + 1} written")
    worker.barrier()
