"""Defines teachers (docs/method.md 1 and 7): PromptMM's own, and others that may be trained in its place."""

from collections.abc import Mapping

import torch

from ..config import TeacherConfig
from ..kinds import TEACHERS
from ..random import derive_seed
from ..sampling import STREAM_INITIAL
from .base import Teacher
from .triples import Triples
from .whole import WholeTeacher

__all__ = ["Teacher", "Triples", "WholeTeacher", "build_whole_teacher", "teacher_kind"]


def teacher_kind(config: TeacherConfig) -> type[Teacher]:
    """Returns the class that `teacher.kind` names.

    Raises:
        InputError: there is no such teacher; the message lists the teachers that ship.
    """
    kind: type[Teacher] = TEACHERS.get(config.kind)
    return kind


def build_whole_teacher(config: TeacherConfig, num_users: int, num_items: int, dims: Mapping[str, int], seed: int) -> WholeTeacher:
    """Builds the teacher that `teacher.kind` names, which has to be a `WholeTeacher`, with seeded random weights.

    Args:
        config: The teacher's settings.
        num_users, num_items: Numbers of users and items in the catalog.
        dims: d_m by modality; empty for a kind that reads no features.
        seed: Seed of the weights.
    """
    kind = teacher_kind(config)
    assert issubclass(kind, WholeTeacher), f"{config.kind} is not a WholeTeacher"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(STREAM_INITIAL, seed, 1))
        return kind(num_users, num_items, dims, config, seed)
