"""Defines the loss of prompt-tuning (stage 2, docs/method.md 4), once for both regimes, and the resident teacher of one of them.

inline: the student's task calls `PromptTuner.terms` with vectors that carry gradients, and one backward pass serves student and prompt.
rounds: the task of `prompt_tuning.py` calls `tuning_terms` with a fixed student's scores, in both engines.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...core.artifact import read_manifest
from ...core.config import DistillationConfig, TeacherConfig
from ...core.graph import BipartiteGraph, Csr
from ...core.objectives import CandidateRequest, LossInputs, StudentSide, candidate_lists, candidate_policy, distillation_terms, label
from ...core.ranking import top_unseen
from ...core.sampling import UserWeights
from ...core.sides import ITEMS, SIDE_NAMES, USERS
from ...core.teacher import Triples
from ...core.teacher.model import teacher_loss, teacher_vectors, with_compared_modalities
from ...core.teacher.reduction import FeatureReduction
from ...core.teacher.softmax import compared_items
from ...core.vectors import TeacherVectors
from ..artifacts.teacher import open_weights, output_of_vectors, read_prompt, teacher_config_of, write_revision
from ..engines.full.catalog import WholeCatalog
from ..engines.learners import AdamLearner, take_prefix
from ..engines.view import PROMPT
from ..messages import StudentJob
from ..worker import Worker


def resident_config(job: StudentJob) -> TeacherConfig:
    """Returns the settings of the run's trained teacher, for which the catalog of prompt-tuning is built."""
    return teacher_config_of(read_manifest(job.teacher_url, "teacher"))


def frozen_reduction(job: StudentJob, weights: dict[str, Tensor], manifest: dict, device: torch.device) -> FeatureReduction:
    """Returns the teacher's reduction layers with its prompt at the job's revision; the prompt alone requires gradients.

    Args:
        job: The student's job.
        weights: The teacher's weights by name.
        manifest: The teacher's manifest.
        device: Where they are to be.
    """
    config = teacher_config_of(manifest)
    reduction = FeatureReduction(dict(manifest["modalities"]), config)
    reduction.load_state_dict(take_prefix("reduction.", weights))
    reduction.prompt.load_state_dict(read_prompt(job.teacher_url, job.revision, job.cluster.cache_dir))
    reduction.requires_grad_(False)
    reduction.towers.to(config.tower_dtype)  # the dtype that they were trained in; the prompt learns in float32
    reduction.prompt.requires_grad_(config.prompt)
    return reduction.to(device)


def prompt_learner(reduction: FeatureReduction, config: DistillationConfig, worker: Worker) -> AdamLearner:
    """Returns the prompt module of reduction layers with its optimizer."""
    prompt = reduction.prompt
    return AdamLearner(prompt, [(list(prompt.parameters()), config.tuning_learning_rate)], worker, "tuner.", "prompt.")


def ranked_lists(config: DistillationConfig, request: CandidateRequest, users: Tensor, ranking: Callable[[Tensor], Tensor]) -> Tensor:
    """Draws candidate lists, int64 [n, 1 + K], with the teacher's rankings where the policy draws from them.

    Args:
        config: Settings of distillation.
        request: The examples; their rankings are filled in here.
        users: int64 [n], dataset indices of the examples' users.
        ranking: Returns the teacher's best unseen items of distinct users, int64 [m, depth], from their dataset indices, int64 [m].
    """
    if not candidate_policy(config).depth:
        return candidate_lists(config, request)
    distinct, rows = torch.unique(users, return_inverse=True)
    return candidate_lists(config, replace(request, ranking=ranking(distinct), ranking_rows=rows))


def best_unseen(train: Csr, vectors: tuple[Tensor, Tensor], users: Tensor, config: DistillationConfig) -> Tensor:
    """Ranks the best unseen items of some users by final vectors of all users and items, as deep as the candidate policy draws."""
    return top_unseen(vectors[USERS][users], vectors[ITEMS], train.select(users), train, candidate_policy(config).depth)


def tuning_terms(
    vectors: TeacherVectors, ids: tuple[Tensor, Tensor], student: StudentSide, triples: Triples, candidates: Tensor, places: Tensor,
    teacher: TeacherConfig, config: DistillationConfig, decayed: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Computes the terms λ1 L_pair, λ2 L_list, λ3 L_emb, λ4 L_score and λ_anchor times the teacher's own loss, by name.

    Gradients reach the prompt, and the student where its scores and vectors carry gradients.

    Args:
        vectors: The teacher's vectors at the current prompt, without dropout.
        ids: Rows of the frozen ID tables, which `triples` index as they do the vectors.
        student: The student's inputs of the losses.
        triples: The batch as the teacher's loss reads it.
        candidates: int64 [batch, 1 + K], rows of the vectors.
        places: int64, the rows of `student.unique_items` among the teacher's vectors.
        teacher: The teacher's settings.
        config: Settings of distillation.
        decayed: int64, the rows that the feature decay is taken over; None for all.
    """
    taught = with_compared_modalities(vectors, teacher)

    def targets() -> list[Tensor]:
        return [rows[places] for rows in taught.modal_item.values()]

    terms = distillation_terms(LossInputs.of(student, label(taught, triples.users, candidates), targets, config))
    if config.anchor_weight:
        if decayed is not None:
            vectors = vectors.with_reduced({m: z[decayed] for m, z in vectors.reduced.items()})
        teacher_terms = teacher_loss(vectors, *ids, triples, teacher)
        terms["anchor"] = config.anchor_weight * torch.stack(list(teacher_terms.values())).sum()
    return terms


@dataclass
class PromptTuner:
    """Holds the resident teacher, in which the prompt module alone is learnt.

    Attributes:
        catalog: The train graph, the prompt's constants and this worker's features.
        teacher: The teacher's settings.
        reduction: Reduction layers and prompt; the prompt alone requires gradients.
        user_ids, item_ids: The frozen ID tables, float32 [num_users, d] and [num_items, d].
        config: Settings of distillation.
    """

    catalog: WholeCatalog
    teacher: TeacherConfig
    reduction: FeatureReduction
    user_ids: Tensor
    item_ids: Tensor
    config: DistillationConfig

    def __post_init__(self) -> None:
        self.weights = UserWeights.of(self.graph.users.pointers, self.teacher.user_balance)

    @property
    def graph(self) -> BipartiteGraph:
        """Returns the train graph."""
        return self.catalog.graph

    @staticmethod
    def load(job: StudentJob, catalog: WholeCatalog, worker: Worker) -> "PromptTuner":
        """Reads the teacher's weights and its prompt at the job's revision.

        Args:
            job: The student's job.
            catalog: A catalog that was built for this teacher's settings (see `resident_config`).
            worker: This worker.
        """
        weights, tables, manifest = open_weights(job.teacher_url, job.cluster.cache_dir)
        reduction = frozen_reduction(job, weights, manifest, worker.device)
        user_ids, item_ids = (rows.whole().to(worker.device) for rows in tables)
        return PromptTuner(catalog, teacher_config_of(manifest), reduction, user_ids, item_ids, job.distill)

    def learner(self, worker: Worker) -> AdamLearner:
        """Returns the prompt module with its optimizer."""
        return prompt_learner(self.reduction, self.config, worker)

    def vectors(self) -> TeacherVectors:
        """Computes all vectors with the current prompt, without dropout; differentiable with respect to the prompt."""
        out = self.reduction(*self.catalog.inputs(None).as_arguments())
        view = self.catalog.view(self.user_ids, self.item_ids, out)
        prompt = dict(zip(SIDE_NAMES, (view.users[PROMPT], view.items[PROMPT])))
        return teacher_vectors(self.graph, self.user_ids, self.item_ids, prompt, view.reduced(), self.teacher)

    def terms(self, student: StudentSide, users: Tensor, candidates: Tensor, unique_items: Tensor) -> dict[str, Tensor]:
        """Computes the terms of `tuning_terms` for this worker's share of a batch.

        Args:
            student: The student's inputs of the losses.
            users, candidates: int64 [batch] and [batch, 1 + K], dataset indices.
            unique_items: int64, the dataset indices of `student.unique_items`.
        """
        positives, weights = candidates[:, 0], self.weights(users) if self.weights else None
        entries = self.graph.entries(users, positives) if self.teacher.leave_one_out else None
        compared = compared_items(self.teacher, self.graph.num_items, 0, 0)  # the same items in every step
        triples = Triples(users, positives, candidates[:, 1], student.num_examples, weights, entries, compared=compared)
        ids = self.user_ids, self.item_ids
        return tuning_terms(self.vectors(), ids, student, triples, candidates, unique_items, self.teacher, self.config)

    def candidates(self, request: CandidateRequest) -> Tensor:
        """Draws candidate lists, int64 [n, 1 + K], with top-ranked candidates by the teacher's scores at the current prompt.

        Args:
            request: The examples; its ranking is filled in here.
        """

        def ranking(users: Tensor) -> Tensor:
            with torch.no_grad():
                vectors = self.vectors()
            return best_unseen(self.graph.users, (vectors.user, vectors.item), users, self.config)

        if candidate_policy(self.config).reads_degrees:
            request = replace(request, item_degrees=self.graph.items.degrees)
        return ranked_lists(self.config, request, request.users, ranking)

    def write(self, worker: Worker, teacher_url: str, revision: int, metadata: dict) -> None:
        """Writes the current prompt and the vectors that it gives as a revision of the teacher; a collective call."""
        with torch.no_grad():
            vectors = with_compared_modalities(self.vectors(), self.teacher)
        prompt = {name: p.detach().cpu().clone() for name, p in self.reduction.prompt.state_dict().items()}
        write_revision(teacher_url, revision, output_of_vectors(worker, vectors), prompt, metadata)
