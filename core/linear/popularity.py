"""Defines popularity: every user gets the items with the most users."""

from typing import ClassVar

import torch
from torch import Tensor

from .base import LinearTeacher
from .config import LinearConfig
from .fit import CatalogCounts
from .search import Choice, Settings


class PopularityTeacher(LinearTeacher):
    """Scores an item by Σ_u A[u, i] deg(u)^-a, alike for all users: vectors of one column. a is `user_exponent`.

    Users without interactions have the same ranking as all others.
    """

    reads: ClassVar[tuple[str, ...]] = ("user_exponent",)

    @classmethod
    def num_columns(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        return 1

    def choices(self) -> dict[str, Choice]:
        return {"user_exponent": Choice(0.0, (0.0, 0.5, 1.0))}

    def vectors(self, settings: Settings) -> tuple[Tensor, Tensor]:
        of = self.interactions
        everyone = torch.ones(self.inputs.graph.num_users, 1, dtype=of.dtype, device=of.like.device)
        weights = of.scaled(of.user_scale(-settings["user_exponent"]), torch.ones_like(of.item_scale(0.0)))
        return everyone, weights.to_items(everyone)
