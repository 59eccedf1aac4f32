"""Defines teachers that learn from interactions alone."""

from ..config import TeacherConfig
from .whole import WholeTeacher


class LightGcnTeacher(WholeTeacher):
    """Implements LightGCN (He et al. 2020) at the teacher's size."""


class MfTeacher(WholeTeacher):
    """Implements MF-BPR (Rendle et al. 2009), y_ui = <γ_u, γ_i>, as LightGCN without layers."""

    @classmethod
    def num_layers(cls, config: TeacherConfig) -> int:
        return 0
