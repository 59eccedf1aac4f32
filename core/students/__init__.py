"""Defines the light students (docs/method.md 2): ID vectors and at most a light propagation, without features or a prompt."""

import torch

from ..config import StudentConfig
from ..errors import InputError
from ..kinds import STUDENTS
from ..random import derive_seed
from ..sampling import STREAM_INITIAL
from .base import Student
from .layered import LayeredStudent
from .warm_start import closest_tables, project, warm_start_maps

__all__ = [
    "LayeredStudent",
    "Student",
    "build_student",
    "check_start_from_histories",
    "closest_tables",
    "project",
    "student_kind",
    "warm_start_maps",
]


def student_kind(config: StudentConfig) -> type[Student]:
    """Returns the class that `student.kind` names.

    Raises:
        InputError: there is no such student; the message lists the students that ship.
    """
    kind: type[Student] = STUDENTS.get(config.kind)
    return kind


def check_start_from_histories(config: StudentConfig, engine: str) -> None:
    """Raises InputError where a student cannot start from a teacher whose scores no vectors hold.

    Args:
        config: The student's settings.
        engine: "full" or "sampled", the engine that trains it; another value where that is open.
    """
    if not student_kind(config).learns_rows:
        raise InputError(
            f"student.kind={config.kind} reads the teacher's vectors, and this teacher scores histories with similarities of items "
            "(teacher.linear.rank=0, or neighbours of kind=spectral); set student.kind=mf, or train a teacher that has vectors alone"
        )
    if config.warm_start and engine == "sampled":
        raise InputError(
            "student.warm_start=true with a teacher that scores histories with similarities of items is computed by the full engine alone; "
            "set student.warm_start=false, or cluster.engine=full"
        )


def build_student(config: StudentConfig, seed: int, frozen_dims: tuple[int, int] | None = None) -> Student:
    """Builds the student that `student.kind` names, with seeded random parameters; its rows are held by the engine.

    Args:
        config: The student's settings.
        seed: Seed of the parameters.
        frozen_dims: Columns of the teacher's final vectors of users and of items, for a student whose rows are these vectors.

    Raises:
        InputError: there is no such student.
    """
    kind = student_kind(config)
    dims = (config.dim, config.dim) if kind.learns_rows else frozen_dims
    assert dims is not None, "a student on frozen vectors comes with a teacher"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(STREAM_INITIAL, seed, 2))
        return kind(config, *dims)
