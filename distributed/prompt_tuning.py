"""Stage 2's prompt-tuning (docs/method.md 4): one definition of the loss for both regimes.

inline: the student's loop calls `PromptTuner.terms` with the student's live vectors, and one backward pass serves both.
rounds: `tune_prompt_loop` calls it with the student as it is, and writes the next revision of the teacher's vectors.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.config import DistillationConfig, TeacherConfig
from ..core.distillation import Decoders, distillation_terms, label
from ..core.sampling import UnseenItems, candidate_lists, epoch_order, rank_slice
from ..core.scoring import candidate_scores
from ..core.storage import join
from ..core.teacher import FeatureReduction, TeacherVectors, teacher_loss
from .checkpoints import take_prefix
from .labels import LabelJob, top_unseen
from .resident import ResidentTeacher, load_resident
from .teacher_artifact import read_revision, read_weights, write_revision
from .worker import Worker

if TYPE_CHECKING:
    from .student_training import StudentJob


def teacher_config_of(manifest: dict) -> TeacherConfig:
    """The settings that a teacher was trained with."""
    from ..core.config import OptimizerConfig

    values = dict(manifest["config"])
    return TeacherConfig(**{**values, "train": OptimizerConfig(**values["train"])})


@dataclass
class PromptTuner:
    """The resident teacher with everything frozen but its prompt module.

    Attributes:
        resident: Graph, constants and features.
        reduction: Reduction layers and prompt; only the prompt requires gradients.
        user_ids, item_ids: The frozen ID tables.
        config: Distillation settings.
    """

    resident: ResidentTeacher
    reduction: FeatureReduction
    user_ids: Tensor
    item_ids: Tensor
    config: DistillationConfig

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.reduction.prompt.parameters(), lr=self.config.tuning_learning_rate)

    @staticmethod
    def load(
        worker: Worker, service: Any, teacher_url: str, revision: int, config: DistillationConfig, cache_dir: str | None
    ) -> "PromptTuner":
        """Reads the teacher's weights, its prompt at a revision, and this worker's features."""
        weights, manifest = read_weights(teacher_url, cache_dir)
        teacher_config = teacher_config_of(manifest)
        resident = load_resident(worker, service, teacher_config)
        reduction = FeatureReduction(dict(manifest["modalities"]), teacher_config)
        reduction.load_state_dict(take_prefix("reduction.", weights))
        reduction.prompt.load_state_dict(read_revision(teacher_url, revision, cache_dir).prompt)
        reduction.requires_grad_(False)
        reduction.towers.to(teacher_config.tower_dtype)  # as they were trained; the prompt learns in float32
        reduction.prompt.requires_grad_(teacher_config.prompt)
        reduction.to(worker.device)
        return PromptTuner(resident, reduction, weights["ids.user"].to(worker.device), weights["ids.item"].to(worker.device), config)

    def vectors(self) -> TeacherVectors:
        """All vectors at the prompt as it is, in evaluation mode; differentiable with respect to the prompt."""
        return self.resident.vectors(self.reduction, self.user_ids, self.item_ids)

    def terms(
        self,
        scores: Tensor,
        student_items: Tensor,
        users: Tensor,
        candidates: Tensor,
        unique_items: Tensor,
        decoders: Decoders,
        num_examples: float,
    ) -> dict[str, Tensor]:
        """λ1 L_pair + λ2 L_list + λ3 L_emb + λ_anchor times the teacher's own loss.

        Gradients reach the prompt, and the student where its scores and vectors carry them.

        Args:
            scores: The student's scores of the candidates [batch, 1 + K].
            student_items: The student's final item vectors, whole.
            users, candidates: int64 [batch] and [batch, 1 + K].
            unique_items, decoders, num_examples: As in `distillation_terms`.
        """
        vectors = self.vectors()
        labels = label(vectors, users, candidates)

        def targets(items: Tensor) -> list[Tensor]:
            return [vectors.modal_item[m][items] for m in vectors.modal_item]

        terms = distillation_terms(scores, student_items, labels, unique_items, targets, decoders, num_examples, self.config)
        if self.config.anchor_weight:
            weights = self.resident.user_weights
            own = teacher_loss(
                vectors,
                self.user_ids,
                self.item_ids,
                users,
                candidates[:, 0],
                candidates[:, 1],
                num_examples,
                self.resident.config,
                weights=weights(users) if weights else None,
                entries=self.resident.graph.entries(users, candidates[:, 0]) if self.resident.config.leave_one_out else None,
            )
            terms["anchor"] = self.config.anchor_weight * torch.stack(list(own.values())).sum()
        return terms

    def step(self, worker: Worker) -> None:
        """Averages the prompt's gradients over the workers and steps."""
        worker.average_gradients(self.reduction.prompt)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def prompt_state(self) -> dict[str, Tensor]:
        """The prompt module's weights, on the CPU."""
        return {name: p.detach().cpu().clone() for name, p in self.reduction.prompt.state_dict().items()}


def tune_prompt_loop(arguments: dict) -> None:
    """One round of tuning, on every Ray Train worker."""
    job: StudentJob = arguments["job"]
    tune_prompt(job, Worker.current(job.cluster.use_gpu, job.cluster.worker_threads))


def tune_prompt(job: "StudentJob", worker: Worker) -> None:
    """n steps for the prompt against the student as it is, then the next revision is written."""
    from .student_training import latest_student

    teacher_url = join(job.run_url, "teacher")
    tuner = PromptTuner.load(worker, job.service, teacher_url, job.revision, job.config, job.cluster.cache_dir)
    graph = tuner.resident.graph
    users_vectors, items_vectors, decoders, epoch = latest_student(job, worker, graph)
    unseen, label_job = UnseenItems(graph.users), job.label_job()
    for step in range(job.config.tuning_steps):
        users, candidates, batch_size = tuning_batch(label_job, graph.users.rows, graph.users.columns, unseen, tuner, epoch, step, worker)
        unique = worker.union(candidates[:, 0])
        scores = candidate_scores(users_vectors, items_vectors, users, candidates)
        terms = tuner.terms(scores, items_vectors, users, candidates, unique, decoders, batch_size / worker.world_size)
        loss = torch.stack(list(terms.values())).sum()
        worker.check_finite(loss, f"prompt-tuning step {step} of revision {job.revision}")
        loss.backward()
        tuner.step(worker)
    with torch.no_grad():
        vectors = tuner.vectors()
    if worker.is_first:
        write_revision(
            teacher_url,
            job.revision + 1,
            vectors,
            tuner.prompt_state(),
            {"lineage": job.lineage, "tuned_after_epoch": epoch},
        )
        job.say(f"prompt tuned for {job.config.tuning_steps} steps: revision {job.revision + 1} written")
    worker.barrier()


def tuning_batch(
    job: LabelJob,
    train_users: Tensor,
    train_items: Tensor,
    unseen: UnseenItems,
    tuner: PromptTuner,
    epoch: int,
    step: int,
    worker: Worker,
) -> tuple[Tensor, Tensor, int]:
    """This worker's users and candidates of the batch that the student would see next, and the size of the global batch."""
    order = epoch_order(job.num_examples, job.seed, epoch + step // job.num_steps)
    at = step % job.num_steps
    batch = order[at * job.batch_size : (at + 1) * job.batch_size].to(train_users.device)
    mine = batch[rank_slice(batch.numel(), worker.rank, worker.world_size)]
    users = train_users[mine]
    candidates = inline_candidates(job, users, train_items[mine], mine, unseen, tuner, epoch + step // job.num_steps)
    return users, candidates, batch.numel()


def inline_candidates(
    job: LabelJob,
    users: Tensor,
    positives: Tensor,
    examples: Tensor,
    unseen: UnseenItems,
    tuner: PromptTuner,
    epoch: int,
) -> Tensor:
    """Candidate lists of a batch while the teacher is resident; its top-ranked items are those of the prompt as it is."""
    config, ranked, rows = job.config, None, None
    if config.num_top:
        with torch.no_grad():
            vectors, seen = tuner.vectors(), tuner.resident.graph.users
        unique, rows = torch.unique(users, return_inverse=True)
        ranked = top_unseen(vectors.user[unique], vectors.item, seen.select(unique), seen, config.top_depth)
    return candidate_lists(users, positives, examples, unseen, config.num_uniform, ranked, config.num_top, job.seed, epoch, rows)
