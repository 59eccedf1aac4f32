"""Tunes the prompt between two rounds of labels, against a student that stays fixed (docs/method.md 4), in both engines."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...core.objectives import CandidateRequest, Decoders, Labels, StudentSide, candidate_policy
from ...core.rows import RowTables
from ...core.sampling import UserWeights
from ...core.scoring import candidate_scores
from ...core.sides import ITEMS, USERS
from ...core.teacher import Triples
from ...core.teacher.softmax import compared_items
from ..artifacts.output import Output
from ..artifacts.teacher import RowShards, open_weights, revision_digest, teacher_config_of, write_revision
from ..engines.examples import Examples
from ..engines.learners import Learner, take_prefix
from ..engines.view import ID, FeatureInputs, View
from ..loop.selection import Selection
from ..loop.totals import total_of
from ..loop.trainer import Trainer
from ..messages import StudentJob
from ..worker import Worker
from .base import Pair, RowsOf
from .distinct import distinct_positives
from .prompt_model import PromptModelTask
from .student import StudentTask
from .tuning import best_unseen, frozen_reduction, prompt_learner, ranked_lists, tuning_terms


@dataclass(frozen=True)
class FixedStudent:
    """Holds the student that the prompt is tuned against.

    Attributes:
        task: The student's task, with the weights of the newest checkpoint; its decoders take part in the loss.
        rows: Return final vectors of users and of items, float32 [n, d_S], from dataset indices, int64 [n].
        epochs: The number of epochs that the student has been trained for.
    """

    task: StudentTask
    rows: tuple[RowsOf, RowsOf]
    epochs: int

    @property
    def decoders(self) -> Decoders:
        """Returns the student's decoders, which stay as they are."""
        return self.task.decoders.requires_grad_(False)

    def scores(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Returns the scores of candidate lists, float32 [n, 1 + K].

        Args:
            users, candidates: int64 [n] and [n, 1 + K], dataset indices.
        """
        distinct_users, user_rows = torch.unique(users, return_inverse=True)
        distinct_items, item_rows = torch.unique(candidates, return_inverse=True)
        return candidate_scores(self.rows[USERS](distinct_users), self.rows[ITEMS](distinct_items), user_rows, item_rows)


@dataclass(frozen=True)
class TuningBatch:
    """Holds one worker's share of a step; see `TaskBatch` for the other attributes.

    Attributes:
        users, candidates: int64 [n] and [n, 1 + K], dataset indices, or rows of a view once the batch is `located`.
        scores: The fixed student's scores of the lists, float32 [n, 1 + K].
        weights: float32 [n], weights of the examples in the teacher's own loss; None where all are 1.
        taught_weights: float32 [n], weights of the examples in the distillation losses; None where all are 1.
        further, num_decayed, compared: As in `TeacherBatch`.
    """

    step: int
    size: int
    order_epoch: int
    users: Tensor
    candidates: Tensor
    scores: Tensor
    weights: Tensor | None
    taught_weights: Tensor | None
    further: Tensor
    num_decayed: int | None = None
    compared: Tensor | None = None
    is_last: bool = True

    @property
    def items(self) -> Tensor:
        """Returns the candidates of all lists, then the compared items, int64 [n (1 + K) + number of compared items]."""
        return torch.cat([self.candidates.reshape(-1), *([] if self.compared is None else [self.compared])])

    def located(self, users: Tensor, items: Tensor, further: Tensor) -> "TuningBatch":
        """Returns the batch with rows of a view in place of dataset indices; `items` are in the order of the attribute."""
        count = self.candidates.numel()
        compared = None if self.compared is None else items[count:]
        return replace(self, users=users, candidates=items[:count].view_as(self.candidates), further=further, compared=compared)

    def to(self, device: torch.device) -> "TuningBatch":
        """Returns the batch on a device."""
        users, candidates, scores, further = (x.to(device) for x in (self.users, self.candidates, self.scores, self.further))
        weights, taught, compared = (None if x is None else x.to(device) for x in (self.weights, self.taught_weights, self.compared))
        return replace(
            self, users=users, candidates=candidates, scores=scores, further=further, weights=weights, taught_weights=taught,
            compared=compared,
        )  # fmt: skip


class PromptTuningTask(PromptModelTask[TuningBatch]):
    """Trains the prompt of a teacher that is frozen otherwise, for `distill.tuning_steps` steps after the student's epochs.

    Args:
        job: The job of the round that has just ended.
        worker: This worker.
        student: The student, which stays fixed.
        stored_ranking: Returns the best unseen items of distinct users at the job's revision, int64 [m, depth], from int64 [m]; None to
            rank them by the prompt as it is, from whole vectors, which the full engine has.
    """

    stage: ClassVar[str] = "tuning"
    learns_rows = False
    init_scale = 0.0  # the rows are the teacher's
    id_rows: list[RowShards]

    def __init__(
        self, job: StudentJob, worker: Worker, student: FixedStudent, stored_ranking: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        weights, self.id_rows, self._manifest = open_weights(job.teacher_url, job.cluster.cache_dir)
        super().__init__(teacher_config_of(self._manifest), worker, job.engine)
        self.job, self.student, self.seed, self.examples = job, student, job.seed, job.config.examples
        self.train = replace(job.train, lr_decay=1.0)  # the prompt's step size does not decay
        self.module = frozen_reduction(job, weights, self._manifest, worker.device)
        self._stored_ranking = stored_ranking
        self._vectors: Callable[[], dict[str, Pair]] | None = None

    @property
    def epochs(self) -> range:
        """Returns the epochs in whose order the steps visit the examples: those that follow the student's."""
        steps_an_epoch = -(-self.job.num_examples // self.train.batch_size)
        return range(self.student.epochs, self.student.epochs - (-self.job.distill.tuning_steps // steps_an_epoch))

    def build(self, dims: dict[str, int], counts: tuple[int, int], example: Callable[[], FeatureInputs]) -> None:
        self.dims, self.num_items = dims, counts[ITEMS]

    def initial_rows(self, own_ids: Pair) -> tuple[RowsOf, RowsOf]:
        users, items = self.id_rows
        return users.__getitem__, items.__getitem__

    def learners(self, tables: RowTables | None) -> list[Learner]:
        return [prompt_learner(self.module, self.job.distill, self.worker)]

    def start_epoch(self, examples: Examples, vectors: Callable[[], dict[str, Pair]]) -> None:
        if self.job.distill.num_student and self._vectors is None:
            everyone = [torch.arange(count, device=self.worker.device) for count in (examples.train.num_rows, examples.train.num_columns)]
            users, items = (rows(ids) for rows, ids in zip(self.student.rows, everyone))
            self.student.task.rank_own(examples, (users, items))
        self._vectors = vectors

    def batches(self, examples: Examples, epoch: int, num_parts: int) -> Generator[TuningBatch, None, None]:
        assert num_parts == 1, "a step of the prompt is one batch"
        balance = UserWeights.of(examples.train.pointers, self.job.distill.user_balance)
        done = (epoch - self.epochs.start) * examples.num_steps
        compared = compared_items(self.config, examples.train.num_columns, 0, 0)  # the same items in every step
        for step in range(min(examples.num_steps, self.job.distill.tuning_steps - done)):
            users, candidates = self._lists(examples, epoch, step)
            taught = balance(users) if balance else None
            scores, size = self.student.scores(users, candidates), examples.size_of(step)
            further = self.decayed_items(epoch * examples.num_steps + step, 0, 1)
            yield TuningBatch(
                step, size, epoch, users, candidates, scores, examples.weights(users), taught, *further, compared
            )  # fmt: skip

    def _lists(self, examples: Examples, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Returns the users of this worker's share of a step and their candidate lists, dataset indices int64 [n] and [n, 1 + K]."""
        indices, users, positives = examples.of_step(epoch, step, examples.share_of(step))
        rows, unseen = examples.unseen_of(users)
        degrees = examples.item_degrees if candidate_policy(self.job.distill).reads_degrees else None
        request = CandidateRequest(rows, positives, indices, unseen, self.seed, epoch, item_degrees=degrees)
        candidates = ranked_lists(self.job.distill, request, users, self._stored_ranking or self._current_ranking(examples))
        if self.student.task.own is not None:
            candidates = self.student.task.own.extend(Labels(users, candidates), indices, epoch).candidates
        return users, candidates

    def _current_ranking(self, examples: Examples) -> Callable[[Tensor], Tensor]:
        """Returns what ranks the best unseen items of users by the teacher's final vectors at the current prompt."""

        @torch.no_grad()
        def ranking(users: Tensor) -> Tensor:
            assert self._vectors is not None, "an epoch starts with vectors"
            return best_unseen(examples.train, self._vectors()["final"], users, self.job.distill)

        return ranking

    def reduce(self, inputs: FeatureInputs) -> dict[str, Tensor]:
        out: dict[str, Tensor] = self.module(*replace(inputs, dropout_keys=None).as_arguments())
        return out

    def terms(self, view: View, batch: TuningBatch) -> dict[str, Tensor]:
        users, candidates, share = batch.users, batch.candidates, batch.size / self.worker.world_size
        ids, places, count = distinct_positives(self.worker, view, candidates[:, 0])
        items = self.student.rows[ITEMS](ids).to(self.worker.device)
        rows, num_unique = torch.arange(ids.numel(), device=items.device), count / self.worker.world_size
        side = StudentSide(batch.scores, items, rows, self.student.decoders, share, num_unique, batch.taught_weights)
        entries = view.graph.entries(users, candidates[:, 0]) if self.config.leave_one_out else None
        num_decayed = None if batch.num_decayed is None else batch.num_decayed / self.worker.world_size
        pairs = users, candidates[:, 0], candidates[:, 1]
        triples = Triples(*pairs, share, batch.weights, entries, num_decayed, batch.compared)
        own, decayed = (view.users[ID], view.items[ID]), None if batch.num_decayed is None else batch.further
        return tuning_terms(self.all_vectors(view), own, side, triples, candidates, places, self.config, self.job.distill, decayed)

    def write(self, output: Output, selection: Selection | None = None) -> None:
        """Writes the prompt and the vectors that it gives as the next revision of the teacher; a collective call."""
        job = self.job
        facts = {"lineage": job.lineage, "tuned_after_epoch": self.student.epochs}
        facts["tuned_from"] = revision_digest(job.teacher_url, job.revision)
        write_revision(job.teacher_url, job.revision + 1, output, take_prefix("prompt.", output.weights), facts)


def tune_prompt(task: PromptTuningTask, trainer: Trainer, show: Callable[[str], None]) -> None:
    """Takes the steps of prompt-tuning, and writes the next revision of the teacher's vectors; a collective call.

    Args:
        task: The task of the trainer.
        trainer: Of either engine.
        show: Shows a line to the person who started the run.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    job, worker, taken = task.job, trainer.worker, 0
    for epoch in task.epochs:
        trainer.start_epoch(epoch)
        for batch in trainer.batches(epoch):
            terms = trainer.train_step(batch, epoch)
            worker.check_finite(total_of(terms), f"prompt-tuning step {taken} of revision {job.revision}")
            taken += 1
    trainer.keep()
    task.write(trainer.output())
    if worker.is_first:
        show(f"[student] prompt tuned for {taken} steps: revision {job.revision + 1} written")
    worker.barrier()
