"""Defines RP3beta (Paudel et al., ACM TiiS 2017): random walks of three steps from a user, with popular items damped."""

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from ..histories import Similarities
from .base import chained, rank_choice
from .lists import ListTeacher, neighbour_choice
from .search import Choice, Settings


class Rp3betaTeacher(ListTeacher):
    """Scores H W with W = D_I^-α A^T D_U^-α A D_I^-β, without its diagonal, where every row keeps its k largest entries.

    The entries of the transition matrices D_U^-1 A and D_I^-1 A^T are raised to the power α. k is `neighbours`.
    """

    reads: ClassVar[tuple[str, ...]] = ("rank", "alpha", "beta", "neighbours")

    def choices(self) -> dict[str, Choice]:
        return {
            "beta": Choice(0.5, (0.0, 0.25, 0.5, 0.75, 1.0)),
            "alpha": Choice(0.7, (0.3, 0.5, 0.7, 1.0, 1.4)),
            "neighbours": neighbour_choice(self.interactions.num_items, 200),
            "rank": rank_choice(self.interactions.num_items),
        }

    def key(self, settings: Settings) -> tuple[float, float]:
        return settings["alpha"], settings["beta"]

    def rows(self, alpha: float, beta: float) -> Iterator[tuple[slice, Tensor]]:
        of = self.interactions
        sources, targets = (of.item_scale(-power).to(of.dtype) for power in (alpha, beta))
        for block, rows in of.shared_users(of.user_scale(-alpha)):
            yield block, sources[block, None] * rows * targets

    def similarities(self, settings: Settings) -> Similarities:
        return self.lists(settings).similarities()

    def vectors(self, settings: Settings) -> tuple[Tensor, Tensor]:
        of, lists = self.interactions, self.lists(settings)
        key = tuple(value for name, value in settings.items() if name != "rank")
        scores = chained(of.histories(), lists.products())
        return self.best_vectors(key, scores, settings["rank"], lambda: (of.dense_histories(), lists.dense().T))
