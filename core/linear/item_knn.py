"""Defines item kNN: an item is scored by its cosine to those of its nearest items that the user interacted with."""

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from ..histories import Similarities
from .base import chained, rank_choice
from .factors import Scores
from .lists import ListTeacher, neighbour_choice
from .search import Choice, Settings


class ItemKnnTeacher(ListTeacher):
    """Compares items by the users that they share (Deshpande and Karypis 2004), with weighted users and a shrunk cosine.

    With G = A^T diag(deg^-a) A, similarities are S_ij = G_ij / (sqrt(G_ii G_jj) + s) for i ≠ j, of which every item i keeps the k largest.
    The scores are H S^T. a is `user_exponent`, s `shrink`, k `neighbours`.
    """

    reads: ClassVar[tuple[str, ...]] = ("rank", "user_exponent", "shrink", "neighbours")

    def choices(self) -> dict[str, Choice]:
        return {
            "neighbours": neighbour_choice(self.interactions.num_items, 100),
            "user_exponent": Choice(0.5, (0.0, 0.5, 1.0)),
            "shrink": Choice(0.0, (0.0, 1.0, 3.0, 10.0, 30.0)),
            "rank": rank_choice(self.interactions.num_items),
        }

    def key(self, settings: Settings) -> tuple[float, float]:
        return settings["user_exponent"], settings["shrink"]

    def rows(self, user_exponent: float, shrink: float) -> Iterator[tuple[slice, Tensor]]:
        of = self.interactions
        weights = of.user_scale(-user_exponent)
        norms = of.scaled(weights, of.item_scale(0.0)).to_items(of.like.new_ones(self.inputs.graph.num_users, 1)).sqrt().squeeze(1)
        for block, rows in of.shared_users(weights):
            yield block, rows / (norms[block, None] * norms + shrink).clamp(min=1e-30)

    def similarities(self, settings: Settings) -> Similarities:
        return self.lists(settings).similarities(turned=True)

    def vectors(self, settings: Settings) -> tuple[Tensor, Tensor]:
        of, lists = self.interactions, self.lists(settings)
        similar = lists.products()
        towards_items = Scores(of.num_items, similar.to_items, similar.to_users)  # S^T
        key = tuple(value for name, value in settings.items() if name != "rank")
        scores = chained(of.histories(), towards_items)
        return self.best_vectors(key, scores, settings["rank"], lambda: (of.dense_histories(), lists.dense()))
