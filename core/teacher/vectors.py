"""Defines the teacher that was trained elsewhere, whose vectors are read from files (docs/method.md 7.3)."""

from typing import ClassVar

from ..config import TeacherConfig
from ..errors import InputError
from ..vector_files import FINAL, VectorFiles
from .base import Teacher


class VectorsTeacher(Teacher):
    """Declares a teacher whose vectors another model made; `distributed/tasks/imported_teacher.py` reads them."""

    engines: ClassVar[tuple[str, ...]] = ("full", "sampled")  # it takes no step in either
    is_imported: ClassVar[bool] = True
    losses: ClassVar[tuple[str, ...]] = ("bpr", "softmax")  # neither is read; a component of an ensemble takes over what others read

    @classmethod
    def check(cls, config: TeacherConfig) -> None:
        for side in ("users", "items"):
            if getattr(config.vectors, side) is None:
                raise InputError(
                    f"teacher.vectors.{side} is not set, and teacher.kind={config.kind} reads vectors from there; name a Parquet file of "
                    "them (docs/formats.md 15)"
                )

    @classmethod
    def has_modality_vectors(cls, config: TeacherConfig) -> bool:
        """Returns whether the files have vectors by modality, as their schemas say.

        Raises:
            InputError: a file is missing or of another form.
        """
        return bool(VectorFiles.of(config.vectors).modal_dims)

    @classmethod
    def final_dim(cls, config: TeacherConfig, num_modalities: int) -> int:
        return VectorFiles.of(config.vectors).dims[FINAL]

    @classmethod
    def num_layers(cls, config: TeacherConfig) -> int:
        return 0
