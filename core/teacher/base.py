"""What a teacher says of itself, whoever trains it."""

from typing import ClassVar

from ..config import TeacherConfig


class Teacher:
    """What settings, plan and engines ask of every kind of teacher.

    Attributes:
        engines: The engines that can train it.
        reads_features: Whether it learns from the modalities, and so has vectors for each of them.
        has_prompt: Whether it has a prompt that can be tuned.
        has_towers: Whether it has reduction towers, which DeepSpeed shards.
    """

    component: ClassVar[str] = "teacher"
    engines: ClassVar[tuple[str, ...]] = ("full",)
    reads_features: ClassVar[bool] = False
    has_prompt: ClassVar[bool] = False
    has_towers: ClassVar[bool] = False

    @classmethod
    def final_dim(cls, config: TeacherConfig, num_modalities: int) -> int:
        """Columns of the final vectors."""
        return config.dim

    @classmethod
    def num_layers(cls, config: TeacherConfig) -> int:
        """Layers of propagation on the collaborative path, over the user-item graph."""
        return config.layers

    @classmethod
    def num_hops(cls, config: TeacherConfig) -> int:
        """Hops that its vectors reach over the user-item graph."""
        return cls.num_layers(config)

    @classmethod
    def further_parameters(cls, config: TeacherConfig, num_users: int, num_items: int, num_modalities: int) -> int:
        """Numbers that it learns a user or an item beside the ID tables, over all of them; `plan` counts them."""
        return 0

    @classmethod
    def item_graph_edges(cls, config: TeacherConfig, num_items: int, num_modalities: int) -> int:
        """Edges of all item-item graphs that it keeps; `plan` counts them, and the search that makes them."""
        return 0
