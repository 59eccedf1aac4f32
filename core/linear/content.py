"""Defines a model that compares items by their features alone: a user is the mean of what it interacted with."""

from typing import ClassVar

from torch import Tensor

from ..config import TeacherConfig
from .base import LinearTeacher
from .config import LinearConfig
from .content_scores import ContentScores, content_bytes
from .fit import CatalogCounts, LinearInputs
from .search import Choice, Settings


class ContentTeacher(LinearTeacher):
    """Scores an item by its content alone, as `ContentScores` does; b is `item_exponent`.

    Vectors by modality there are none, since these would all need the same size.
    """

    reads_features: ClassVar[bool] = True
    adds_content: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ("preparation", "item_exponent", "modality_weights")

    def __init__(self, inputs: LinearInputs, config: LinearConfig) -> None:
        super().__init__(inputs, config)
        self.scores = ContentScores(self.interactions, inputs.features, config)

    @classmethod
    def has_modality_vectors(cls, config: TeacherConfig) -> bool:
        return False

    @classmethod
    def num_columns(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        return sum(counts.dims.values())

    @classmethod
    def fitting_bytes(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        return content_bytes(counts.users, counts.items, counts.dims)

    def choices(self) -> dict[str, Choice]:
        return {**self.scores.choices(), "item_exponent": Choice(0.0, (0.0, 0.25, 0.5))}

    def given(self) -> Settings:
        exponent = self.config.item_exponent
        return {**self.scores.given(), **({} if exponent is None else {"item_exponent": exponent})}

    def settled(self, settings: Settings) -> Settings:
        return self.scores.settled(settings)

    def vectors(self, settings: Settings) -> tuple[Tensor, Tensor]:
        return self.scores.vectors(settings, settings["item_exponent"])
