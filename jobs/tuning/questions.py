"""What `tune` tries, in its order: the structure of the teacher first, then its rates, then the student (docs/accuracy.md).

A question changes the settings that are best so far in one respect, and has alternatives. Which questions make sense follows from these
settings: the temperature of a softmax is not asked for where BPR trains.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...core.config import TeacherConfig
from ...core.teacher import teacher_kind
from ...core.teacher.ensemble import parts_of
from ..settings import Settings

Changes = dict[str, Any]  # dotted settings

SOFTMAX: Changes = {
    "teacher.loss": "softmax", "teacher.examples": "histories", "teacher.softmax_items": 4096, "teacher.l2": 0.0, "teacher.init_scale": 0.1,
    "teacher.layers": 2, "teacher.train.learning_rate": 0.01,
}  # fmt: skip
BPR: Changes = {
    "teacher.loss": "bpr", "teacher.examples": "interactions", "teacher.l2": 0.007, "teacher.init_scale": 0.01, "teacher.layers": 4,
    "teacher.train.learning_rate": 0.015,
}  # fmt: skip
BESIDE: Changes = {
    "teacher.fusion": "concat", "teacher.modality_layers": 0, "teacher.whiten": True, "teacher.leave_one_out": True,
    "teacher.feature_temperature": 0.1, "teacher.feature_loss_weight": 1.0, "teacher.feature_decay": 0.0,
}  # fmt: skip
ADDED: Changes = {
    "teacher.fusion": "sum", "teacher.modality_layers": 1, "teacher.leave_one_out": False, "teacher.feature_temperature": None,
    "teacher.feature_loss_weight": 0.1, "teacher.fusion_weight": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """Asks about one respect of the settings.

    Attributes:
        about: The respect, in words.
        alternatives: Changes of the settings that are best so far, each of them tried; dotted settings.
    """

    about: str
    alternatives: tuple[Changes, ...]


def trained_part(teacher: TeacherConfig) -> tuple[str, TeacherConfig] | None:
    """Returns name and settings of the part of a teacher that the search is about; None where all of it is fitted or taken.

    It is the first multi-modal one, or else the last that is trained in steps: plain tables before it are there for their temperature.
    """
    trained = [(name, config) for name, config in parts_of(teacher).items() if teacher_kind(config).takes_steps()]
    return next((part for part in trained if teacher_kind(part[1]).has_towers), trained[-1] if trained else None)


def teacher_questions(settings: Settings) -> Iterator[Question]:
    """Yields the questions about the trained component, for settings as they are when a question is asked."""
    part = trained_part(settings.teacher)
    if part is None:
        return
    trained = part[1]
    has_towers = teacher_kind(trained).has_towers  # what enters by fusion
    if "softmax" in teacher_kind(trained).losses:
        yield Question("the loss", (BPR if trained.loss == "softmax" else SOFTMAX,))
    if has_towers:
        yield Question("how features enter", (ADDED if trained.fusion == "concat" else BESIDE,))
    of_users: Changes = {"teacher.examples": "users", "teacher.user_balance": 0.0}
    yield Question("what an epoch visits", (of_users, {"teacher.examples": "histories"}, {"teacher.user_balance": 0.5}))
    yield Question("depth", tuple({"teacher.layers": layers} for layers in (1, 2, 3, 4)))
    yield Question("size", tuple({"teacher.dim": dim} for dim in (128, 256, 512)))
    yield Question("the start", ({"teacher.start": "spectral"},))
    if trained.loss == "softmax":
        yield Question("τ_s, the temperature of the softmax", tuple({"teacher.temperature": t} for t in (0.1, 0.15, 0.2, 0.25, 0.3)))
    if has_towers:
        yield Question("whitening", ({"teacher.whiten": True}, {"teacher.whiten": False}))
        yield Question("η, the features' share", tuple({"teacher.fusion_weight": w} for w in (0.2, 0.5, 1.0, 2.5)))
    yield Question("weight of L2", tuple({"teacher.l2": weight} for weight in (0.0, 1e-4, 1e-3, 7e-3)))
    rate = trained.train.learning_rate
    yield Question("learning rate", ({"teacher.train.learning_rate": rate / 2}, {"teacher.train.learning_rate": rate * 2}))


def student_questions(settings: Settings) -> Iterator[Question]:
    """Yields the questions about the student and its lists."""
    yield Question("size", tuple({"student.dim": dim} for dim in (64, 128, 256)))
    yield Question("τ, the temperature of the lists", tuple({"distill.temperature": t} for t in (1.0, 2.0, 4.0, 8.0)))
    rate = settings.student.train.learning_rate
    yield Question("learning rate", ({"student.train.learning_rate": rate / 2}, {"student.train.learning_rate": rate * 2}))
    yield Question("the list", ({"distill.num_top": 20}, {"distill.num_top": 5}, {"distill.num_uniform": 20}))
    yield Question("propagation", ({"student.kind": "lightgcn", "student.layers": 1},))


def differs(changes: Changes, settings: Mapping[str, Any]) -> bool:
    """Whether changes would change anything; settings by dotted name."""
    return any(settings.get(name) != value for name, value in changes.items())
