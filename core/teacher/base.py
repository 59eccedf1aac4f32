"""Defines what every kind of teacher declares about itself."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ..config import TeacherConfig
from ..vectors import TeacherVectors


class Teacher:
    """Declares what settings, plan and engines have to know about a kind of teacher.

    Attributes:
        engines: The engines that can train the teacher.
        reads_features: Whether the teacher learns from the modalities, whatever its settings are.
        has_prompt: Whether the teacher has a prompt that can be tuned.
        has_towers: Whether the teacher has reduction towers, which DeepSpeed shards.
        losses: The values of `teacher.loss` that the teacher can be trained with.
        is_fitted: Whether the teacher is fitted in closed form, without steps; it then is a `core.linear.base.LinearTeacher`.
        is_ensemble: Whether the teacher adds up the scores of others.
        is_imported: Whether the teacher was trained elsewhere, and its vectors are read from the files that `teacher.vectors` names.
    """

    component: ClassVar[str] = "teacher"
    engines: ClassVar[tuple[str, ...]] = ("full",)
    reads_features: ClassVar[bool] = False
    has_prompt: ClassVar[bool] = False
    has_towers: ClassVar[bool] = False
    losses: ClassVar[tuple[str, ...]] = ("bpr",)
    is_fitted: ClassVar[bool] = False
    is_ensemble: ClassVar[bool] = False
    is_imported: ClassVar[bool] = False

    @classmethod
    def takes_steps(cls) -> bool:
        """Returns whether the teacher is trained in steps; of an ensemble its components say so."""
        return not (cls.is_fitted or cls.is_imported)

    @classmethod
    def check(cls, config: TeacherConfig) -> None:
        """Raises InputError where the settings of `teacher` do not fit each other for this kind."""

    @classmethod
    def why_full(cls, config: TeacherConfig) -> str | None:
        """Returns why the full engine alone trains the teacher with these settings, as a sentence without its end; None where both do."""
        return None if "sampled" in cls.engines else f"teacher.kind={config.kind} is trained by the full engine alone"

    @classmethod
    def learns_from_features(cls, config: TeacherConfig) -> bool:
        """Returns whether the teacher learns from the modalities with these settings."""
        return cls.reads_features

    @classmethod
    def has_modality_vectors(cls, config: TeacherConfig) -> bool:
        """Returns whether the teacher has vectors for each modality, as kinds have that learn from modalities."""
        return cls.reads_features

    @classmethod
    def linear_settings(cls) -> tuple[str, ...]:
        """Returns the names of the settings of `teacher.linear` that the kind reads."""
        return ()

    @classmethod
    def check_installed(cls) -> None:
        """Raises InputError where a package that the kind needs is not installed; the message says how to install it."""

    @classmethod
    def final_dim(cls, config: TeacherConfig, num_modalities: int) -> int:
        """Returns the number of columns of the final vectors."""
        return config.dim

    @classmethod
    def num_layers(cls, config: TeacherConfig) -> int:
        """Returns the number of propagation layers on the collaborative path, over the user-item graph."""
        return config.layers

    @classmethod
    def num_hops(cls, config: TeacherConfig) -> int:
        """Returns the number of hops that the teacher's vectors reach over the user-item graph."""
        return cls.num_layers(config)

    @classmethod
    def further_parameters(cls, config: TeacherConfig, num_users: int, num_items: int, num_modalities: int) -> int:
        """Returns how many numbers the teacher learns for users and items beside the ID tables, over all of them; `plan` reads it."""
        return 0

    @classmethod
    def item_graph_edges(cls, config: TeacherConfig, num_items: int, num_modalities: int) -> int:
        """Returns the number of edges of all item-item graphs that the teacher keeps; `plan` estimates memory and search from it."""
        return 0

    @classmethod
    def untouched_items(cls, config: TeacherConfig, vectors: TeacherVectors, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor | None:
        """Returns final vectors of items without train interactions as their features alone give them, or None.

        What belongs to an item's ID is zero in them: nothing has taught it but the item's place among the negatives.

        Args:
            config: The settings that the teacher was trained with.
            vectors: All its vectors.
            weights: Its weights by the names that the teacher's artifact has.
            rows: int64 [n], the items; none has a train interaction.

        Returns:
            float32 [n, final_dim]; None where features do not reach the vectors of items without interactions, which is the default.
        """
        return None
