"""Declares the settings of the student."""

from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..kinds import STUDENTS
from ..settings import check_bounds, setting
from .checks import check_balance, check_start
from .training import OptimizerConfig, examples_setting, start_exponent_setting, start_setting, user_balance_setting


@dataclass(frozen=True)
class StudentConfig:
    """Settings of the light student that ships (docs/method.md 2); section `student`."""

    kind: str = setting("lightgcn", "model of the student: lightgcn, mf, gcn, mlp, or your own as module:Class", kinds=STUDENTS)
    dim: int = setting(64, "embedding size d_S", ge=1)
    layers: int = setting(2, "propagation layers L_S (mlp: layers of the head)", ge=0)
    warm_start: bool = setting(
        False, "start the ID tables from the teacher's final vectors, or where student.dim is smaller from those with the closest scores"
    )
    l2: float = setting(1e-4, "L2 on the batch's rows of the ID tables, per example", ge=0)
    user_balance: float = user_balance_setting()
    examples: str = examples_setting()
    bpr_weight: float = setting(1.0, "weight of BPR on the train pairs; 0 leaves it to the teacher what is learnt", ge=0)
    start: str = start_setting("; with warm_start it has no meaning")
    start_user_exponent: float = start_exponent_setting("user")
    start_item_exponent: float = start_exponent_setting("item")
    init_scale: float = setting(0.1, "standard deviation of the ID tables at the start", gt=0)
    options: dict[str, Any] = setting({}, "settings that a student of your own reads")
    train: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        check_bounds(self, "student")
        check_balance("student", self.user_balance, "student", self.examples)
        check_start("student", self.start, self.start_user_exponent, self.start_item_exponent)
        if self.start == "spectral" and self.starts_from_teacher:
            raise InputError(
                "student.start=spectral has no meaning for a student that starts from the teacher's vectors; leave it out, or set "
                "student.warm_start=false and a student.kind that learns its rows"
            )
        least = STUDENTS.get(self.kind).least_layers
        if self.layers < least:
            layers = "one layer" if least == 1 else f"{least} layers"
            raise InputError(
                f"student.layers={self.layers}: the {self.kind} student needs at least {layers}; set student.layers={least} or another "
                "student.kind"
            )

    @property
    def starts_from_teacher(self) -> bool:
        """Returns whether the student needs a teacher, whose final vectors are its start or its frozen rows."""
        return self.warm_start or not STUDENTS.get(self.kind).learns_rows
