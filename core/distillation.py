"""Stage 2: the student's loss from teacher labels (method.md 3)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import DistillationConfig
from .losses import bpr_loss, embedding_loss, l2_loss, list_loss, pair_loss
from .scoring import candidate_scores
from .teacher import TeacherVectors


@dataclass(frozen=True)
class Labels:
    """A batch of teacher labels.

    Attributes:
        users: int64 [batch].
        candidates: int64 [batch, 1 + K], the positive first, then BPR's uniform negative.
        scores: The teacher's scores relative to the positive's [batch, 1 + K]; None for a student without a teacher.
        modal_scores: The same by modality [num_modalities, batch, 1 + K]; a teacher without modalities has none of them.
    """

    users: Tensor
    candidates: Tensor
    scores: Tensor | None = None
    modal_scores: Tensor | None = None

    def __len__(self) -> int:
        return self.users.numel()

    def slice(self, rows: slice) -> "Labels":
        return Labels(
            self.users[rows],
            self.candidates[rows],
            None if self.scores is None else self.scores[rows],
            None if self.modal_scores is None else self.modal_scores[:, rows],
        )

    def to(self, device: torch.device | str) -> "Labels":
        def move(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
            return None if x is None else x.to(device=device, dtype=dtype, non_blocking=True)

        users, candidates = self.users.to(device).long(), self.candidates.to(device).long()
        return Labels(users, candidates, move(self.scores, torch.float32), move(self.modal_scores, torch.float32))


def label(vectors: TeacherVectors, users: Tensor, candidates: Tensor) -> Labels:
    """The teacher's labels for candidate lists; differentiable with respect to the vectors.

    Args:
        users: int64 [batch]; candidates: int64 [batch, 1 + K].
    """
    scores = candidate_scores(vectors.user, vectors.item, users, candidates)
    found = [candidate_scores(vectors.modal_user[m], vectors.modal_item[m], users, candidates) for m in vectors.modal_user]
    modal = torch.stack(found) if found else scores.new_zeros(0, *scores.shape)
    return Labels(users, candidates, scores - scores[:, :1], modal - modal[:, :, :1])


class Decoders(nn.Module):
    """D_m of the embedding loss: a linear map per modality, or the identity where sizes agree and none is asked for."""

    def __init__(self, modalities: list[str], student_dim: int, teacher_dim: int, learnt: bool) -> None:
        super().__init__()
        needed = learnt or student_dim != teacher_dim
        self.maps = nn.ModuleDict(
            {f"of_{m}": nn.Linear(student_dim, teacher_dim, bias=False) if needed else nn.Identity() for m in modalities}
        )

    def forward(self, items: Tensor) -> list[Tensor]:
        """[n, d_S] -> one [n, d] per modality."""
        return [decoder(items) for decoder in self.maps.values()]


def distillation_terms(
    scores: Tensor,
    student_items: Tensor,
    labels: Labels,
    unique_items: Tensor,
    targets: Callable[[Tensor], list[Tensor]],
    decoders: Decoders,
    num_examples: float,
    config: DistillationConfig,
    num_unique: float | None = None,
) -> dict[str, Tensor]:
    """λ1 L_pair, λ2 L_list and λ3 L_emb, the terms that teacher and student share (method.md 3 and 4).

    Args:
        scores: The student's scores of the batch's candidates [batch, 1 + K].
        student_items: The student's final item vectors, whole.
        labels: The batch, or one shard of it.
        unique_items: int64 [n], the unique positive items of the global batch.
        targets: From item indices to the teacher's vectors M_m^I by modality.
        num_examples: Size of the global batch.
        num_unique: Items that the embedding loss is the mean over, where `unique_items` are a shard of them.
    """
    assert labels.scores is not None
    assert labels.modal_scores is not None
    terms = {}
    if config.pair_weight:
        terms["pair"] = config.pair_weight * pair_loss(scores, labels.scores, config.temperature, num_examples)
    if config.list_weight:
        terms["list"] = config.list_weight * list_loss(
            scores,
            labels.modal_scores,
            config.temperature,
            config.reweight_temperature,
            config.confident_weight,
            config.uncertain_weight,
            num_examples,
            config.reweight,
            config.disentangle,
        )
    if config.embedding_weight:
        decoded = decoders(student_items[unique_items])
        terms["embedding"] = config.embedding_weight * embedding_loss(decoded, targets(unique_items), config.embedding_power, num_unique)
    return terms


def student_terms(scores: Tensor, rows: list[Tensor], l2: float, num_examples: float, weights: Tensor | None = None) -> dict[str, Tensor]:
    """BPR(S) with the first candidate as the negative, and L2 on the batch's layer-0 rows.

    Args:
        scores: The student's scores of the batch's candidates [batch, 1 + K].
        rows: Layer-0 rows of the users, positives and negatives, each [batch, d_S].
        weights: float32 [batch], of the examples (`UserWeights`); 1 where not given.
    """
    return {"bpr": bpr_loss(scores[:, 0], scores[:, 1], num_examples, weights), "l2": l2 * l2_loss(rows, num_examples, weights)}
