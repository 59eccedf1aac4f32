"""Defines what a student learns: the teacher's labels of candidate lists, and the losses on them (docs/method.md 3)."""

from .candidates import (
    CandidatePolicy,
    CandidateRequest,
    candidate_identity,
    candidate_lists,
    candidate_policy,
    draw_ranked,
    placed_lists,
    plain_lists,
)
from .labels import Labels, label, labels_of_scores, list_scores
from .terms import (
    Decoders,
    LossInputs,
    StudentSide,
    distillation_terms,
    learns_by_modality,
    needs_modalities,
    student_terms,
)

__all__ = [
    "CandidatePolicy",
    "CandidateRequest",
    "Decoders",
    "Labels",
    "LossInputs",
    "StudentSide",
    "candidate_identity",
    "candidate_lists",
    "candidate_policy",
    "distillation_terms",
    "draw_ranked",
    "label",
    "labels_of_scores",
    "learns_by_modality",
    "list_scores",
    "needs_modalities",
    "placed_lists",
    "plain_lists",
    "student_terms",
]
