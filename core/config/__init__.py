"""Declares the settings that say what to learn. Those that say where to run are in `distributed/config.py`."""

from .checks import as_dict, check_balance
from .distillation import DistillationConfig
from .evaluation import EvaluationConfig
from .student import StudentConfig
from .teacher import TeacherConfig
from .training import OptimizerConfig, SamplingConfig

__all__ = [
    "DistillationConfig",
    "EvaluationConfig",
    "OptimizerConfig",
    "SamplingConfig",
    "StudentConfig",
    "TeacherConfig",
    "as_dict",
    "check_balance",
]
