"""Defines the loss of prompt-tuning (stage 2, docs/method.md 4), once for both regimes.

inline: the student's task calls `PromptTuner.terms` with vectors that carry gradients, and one backward pass serves student and prompt.
rounds: `tuning_round.py` calls it with a fixed student's vectors, and writes the next revision of the teacher's vectors.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...core.config import DistillationConfig, TeacherConfig
from ...core.graph import BipartiteGraph
from ...core.objectives import CandidateRequest, LossInputs, StudentSide, candidate_lists, candidate_policy, distillation_terms, label
from ...core.ranking import top_unseen
from ...core.sampling import UserWeights
from ...core.sides import SIDE_NAMES
from ...core.teacher import Triples
from ...core.teacher.model import teacher_loss, teacher_vectors, with_compared_modalities
from ...core.teacher.reduction import FeatureReduction
from ...core.teacher.softmax import compared_items
from ...core.vectors import TeacherVectors
from ..artifacts.teacher import output_of_vectors, read_prompt, read_weights, teacher_config_of, write_revision
from ..engines.full.catalog import WholeCatalog
from ..engines.learners import AdamLearner, take_prefix
from ..engines.view import PROMPT
from ..messages import StudentJob
from ..worker import Worker


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
        weights, manifest = read_weights(job.teacher_url, job.cluster.cache_dir)
        config = teacher_config_of(manifest)
        reduction = FeatureReduction(dict(manifest["modalities"]), config)
        reduction.load_state_dict(take_prefix("reduction.", weights))
        reduction.prompt.load_state_dict(read_prompt(job.teacher_url, job.revision, job.cluster.cache_dir))
        reduction.requires_grad_(False)
        reduction.towers.to(config.tower_dtype)  # the dtype that they were trained in; the prompt learns in float32
        reduction.prompt.requires_grad_(config.prompt)
        reduction.to(worker.device)
        user_ids, item_ids = (weights[f"ids.{name}"].to(worker.device) for name in SIDE_NAMES)
        return PromptTuner(catalog, config, reduction, user_ids, item_ids, job.distill)

    def learner(self, worker: Worker) -> AdamLearner:
        """Returns the prompt module with its optimizer."""
        prompt = self.reduction.prompt
        return AdamLearner(prompt, [(list(prompt.parameters()), self.config.tuning_learning_rate)], worker, "tuner.", "prompt.")

    def vectors(self) -> TeacherVectors:
        """Computes all vectors with the current prompt, without dropout; differentiable with respect to the prompt."""
        out = self.reduction(*self.catalog.inputs(None).as_arguments())
        view = self.catalog.view(self.user_ids, self.item_ids, out)
        prompt = dict(zip(SIDE_NAMES, (view.users[PROMPT], view.items[PROMPT])))
        return teacher_vectors(self.graph, self.user_ids, self.item_ids, prompt, view.reduced(), self.teacher)

    def terms(self, student: StudentSide, users: Tensor, candidates: Tensor, unique_items: Tensor) -> dict[str, Tensor]:
        """Computes the terms λ1 L_pair, λ2 L_list, λ3 L_emb, λ4 L_score and λ_anchor times the teacher's own loss, by name.

        Gradients reach the prompt, and the student where its scores and vectors carry gradients.

        Args:
            student: The student's inputs of the losses.
            users, candidates: int64 [batch] and [batch, 1 + K], dataset indices.
            unique_items: int64, the dataset indices of `student.unique_items`.
        """
        vectors = self.vectors()
        taught = with_compared_modalities(vectors, self.teacher)

        def targets() -> list[Tensor]:
            return [rows[unique_items] for rows in taught.modal_item.values()]

        terms = distillation_terms(LossInputs.of(student, label(taught, users, candidates), targets, self.config))
        if self.config.anchor_weight:
            positives, weights = candidates[:, 0], self.weights(users) if self.weights else None
            entries = self.graph.entries(users, positives) if self.teacher.leave_one_out else None
            compared = compared_items(self.teacher, self.graph.num_items, 0, 0)  # the same items in every step
            triples = Triples(users, positives, candidates[:, 1], student.num_examples, weights, entries, compared=compared)
            teacher_terms = teacher_loss(vectors, self.user_ids, self.item_ids, triples, self.teacher)
            terms["anchor"] = self.config.anchor_weight * torch.stack(list(teacher_terms.values())).sum()
        return terms

    def candidates(self, request: CandidateRequest) -> Tensor:
        """Draws candidate lists, int64 [n, 1 + K], with top-ranked candidates by the teacher's scores at the current prompt.

        Args:
            request: The examples; its ranking is filled in here.
        """
        policy = candidate_policy(self.config)
        depth = policy.depth
        if policy.reads_degrees:
            request = replace(request, item_degrees=self.graph.items.degrees)
        if not depth:
            return candidate_lists(self.config, request)
        with torch.no_grad():
            vectors, seen = self.vectors(), self.graph.users
        unique, rows = torch.unique(request.users, return_inverse=True)
        ranking = top_unseen(vectors.user[unique], vectors.item, seen.select(unique), seen, depth)
        return candidate_lists(self.config, replace(request, ranking=ranking, ranking_rows=rows))

    def write(self, worker: Worker, teacher_url: str, revision: int, metadata: dict) -> None:
        """Writes the current prompt and the vectors that it gives as a revision of the teacher; a collective call."""
        with torch.no_grad():
            vectors = with_compared_modalities(self.vectors(), self.teacher)
        prompt = {name: p.detach().cpu().clone() for name, p in self.reduction.prompt.state_dict().items()}
        write_revision(teacher_url, revision, output_of_vectors(worker, vectors), prompt, metadata)
