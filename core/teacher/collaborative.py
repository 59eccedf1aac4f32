"""Defines teachers that learn from interactions alone."""

from typing import ClassVar

from torch import Tensor

from ..config import TeacherConfig
from ..graph import BipartiteGraph
from ..rows import rownorm
from ..vectors import TeacherVectors
from .whole import WholeTeacher


class LightGcnTeacher(WholeTeacher):
    """Implements LightGCN (He et al. 2020) at the teacher's size; with `teacher.loss=softmax` its vectors have unit length."""

    losses: ClassVar[tuple[str, ...]] = ("bpr", "softmax")

    def vectors(self, graph: BipartiteGraph, reduced: dict[str, Tensor]) -> TeacherVectors:
        users, items = self.collaborative.vectors(graph)
        if self.config.loss == "softmax":
            users, items = rownorm(users), rownorm(items)
        return TeacherVectors(users, items, {}, {}, None, None, {})


class MfTeacher(LightGcnTeacher):
    """Implements MF-BPR (Rendle et al. 2009), y_ui = <γ_u, γ_i>, as LightGCN without layers."""

    @classmethod
    def num_layers(cls, config: TeacherConfig) -> int:
        return 0
