"""Defines RP3beta (Paudel et al., ACM TiiS 2017): random walks of three steps from a user, with popular items damped."""

from typing import ClassVar

from torch import Tensor

from .adjacency import ItemLists, list_bytes
from .base import CatalogCounts, LinearInputs, LinearTeacher, chained, rank_choice
from .config import LinearConfig
from .item_knn import NEIGHBOURS, neighbour_choice, without_itself
from .search import Choice, Settings


class Rp3betaTeacher(LinearTeacher):
    """Scores H W with W = D_I^-α A^T D_U^-α A D_I^-β, without its diagonal, where every row keeps its k largest entries.

    The entries of the transition matrices D_U^-1 A and D_I^-1 A^T are raised to the power α. k is `neighbours`.
    """

    reads: ClassVar[tuple[str, ...]] = ("rank", "alpha", "beta", "neighbours")

    def __init__(self, inputs: LinearInputs, config: LinearConfig) -> None:
        super().__init__(inputs, config)
        self._lists: tuple[tuple[float, float], ItemLists] | None = None

    @classmethod
    def fitting_bytes(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        return list_bytes(counts.items, config.neighbours or NEIGHBOURS[-1]) + super().fitting_bytes(config, counts)

    def choices(self) -> dict[str, Choice]:
        return {
            "beta": Choice(0.5, (0.0, 0.25, 0.5, 0.75, 1.0)),
            "alpha": Choice(0.7, (0.3, 0.5, 0.7, 1.0, 1.4)),
            "neighbours": neighbour_choice(self.interactions.num_items, 200),
            "rank": rank_choice(self.interactions.num_items),
        }

    def lists(self, settings: Settings) -> ItemLists:
        """Returns the k largest entries of every row of W."""
        key, k = (settings["alpha"], settings["beta"]), settings["neighbours"]
        if self._lists is None or self._lists[0] != key or self._lists[1].columns.shape[1] < min(k, self.interactions.num_items):
            self._lists = None
            of, (alpha, beta) = self.interactions, key
            sources, targets = (of.item_scale(-power).to(of.dtype) for power in (alpha, beta))

            def walks(block: slice, rows: Tensor) -> Tensor:
                return without_itself(block, sources[block, None] * rows * targets)

            weighted = of.shared_users(of.user_scale(-alpha))
            self._lists = key, ItemLists.largest(((block, walks(block, rows)) for block, rows in weighted), k)
        return self._lists[1].first(k)

    def vectors(self, settings: Settings) -> tuple[Tensor, Tensor]:
        of, lists = self.interactions, self.lists(settings)
        key = tuple(value for name, value in settings.items() if name != "rank")
        scores = chained(of.histories(), lists.products())
        return self.best_vectors(key, scores, settings["rank"], lambda: (of.dense_histories(), lists.dense().T))
