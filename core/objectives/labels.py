"""Computes the teacher's labels of candidate lists, which the student's losses read (docs/method.md 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..histories import add_list_scores
from ..scoring import candidate_scores
from ..vectors import TeacherVectors


@dataclass(frozen=True)
class Labels:
    """Holds a batch of teacher labels.

    Attributes:
        users: int64 [batch].
        candidates: int64 [batch, 1 + K], the positive first, then BPR's uniform negative.
        scores: The teacher's scores minus the positive's score, [batch, 1 + K]; None for a student without a teacher.
        modal_scores: The same differences by modality, [num_modalities, batch, 1 + K]; num_modalities is 0 for a teacher without
            modalities, and the attribute is None for a student without a teacher.
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
    """Computes the teacher's labels for candidate lists; differentiable with respect to the vectors.

    Args:
        vectors: The teacher's vectors.
        users: int64 [batch].
        candidates: int64 [batch, 1 + K], the positive first.
    """
    return labels_of_scores(users, candidates, list_scores(vectors, users, candidates))


def labels_of_scores(users: Tensor, candidates: Tensor, scores: list[Tensor]) -> Labels:
    """Returns labels from the scores of their lists, final and by modality, [batch, 1 + K] each, in the order of `list_scores`."""
    final, *by_modality = scores
    modal = torch.stack(by_modality) if by_modality else final.new_zeros(0, *final.shape)
    return Labels(users, candidates, final - final[:, :1], modal - modal[:, :, :1])


def list_scores(vectors: TeacherVectors, users: Tensor, lists: Tensor) -> list[Tensor]:
    """Computes the teacher's final scores of lists of items, and those by modality, [batch, k] each.

    Args:
        vectors: The teacher's vectors.
        users: int64 [batch].
        lists: int64 [batch, k].
    """
    scores = candidate_scores(vectors.user, vectors.item, users, lists)
    scores = add_list_scores(scores, vectors.histories, users, lists)
    return [scores, *(candidate_scores(vectors.modal_user[m], vectors.modal_item[m], users, lists) for m in vectors.modal_user)]
