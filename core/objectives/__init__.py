"""Defines what a student learns: the teacher's labels of candidate lists, and the losses on them (docs/method.md 3)."""

from .candidates import CandidatePolicy, CandidateRequest, candidate_identity, candidate_lists, candidate_policy, plain_lists
from .labels import Labels, label
from .terms import Decoders, LossInputs, StudentSide, distillation_terms, student_terms

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
    "label",
    "plain_lists",
    "student_terms",
]
