"""Defines item kNN: an item is scored by its cosine to those of its nearest items that the user interacted with."""

from typing import ClassVar

from torch import Tensor

from .adjacency import ItemLists, list_bytes
from .base import CatalogCounts, LinearInputs, LinearTeacher, chained, rank_choice
from .config import LinearConfig
from .factors import Scores
from .search import Choice, Settings

NEIGHBOURS = (20, 50, 100, 200, 400, 800)


class ItemKnnTeacher(LinearTeacher):
    """Compares items by the users that they share (Deshpande and Karypis 2004), with weighted users and a shrunk cosine.

    With G = A^T diag(deg^-a) A, similarities are S_ij = G_ij / (sqrt(G_ii G_jj) + s) for i ≠ j, of which every item i keeps the k largest.
    The scores are H S^T. a is `user_exponent`, s `shrink`, k `neighbours`.
    """

    reads: ClassVar[tuple[str, ...]] = ("rank", "user_exponent", "shrink", "neighbours")

    def __init__(self, inputs: LinearInputs, config: LinearConfig) -> None:
        super().__init__(inputs, config)
        self._lists: tuple[tuple[float, float], ItemLists] | None = None

    @classmethod
    def fitting_bytes(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        return list_bytes(counts.items, config.neighbours or NEIGHBOURS[-1]) + super().fitting_bytes(config, counts)

    def choices(self) -> dict[str, Choice]:
        return {
            "neighbours": neighbour_choice(self.interactions.num_items, 100),
            "user_exponent": Choice(0.5, (0.0, 0.5, 1.0)),
            "shrink": Choice(0.0, (0.0, 1.0, 3.0, 10.0, 30.0)),
            "rank": rank_choice(self.interactions.num_items),
        }

    def lists(self, settings: Settings) -> ItemLists:
        """Returns every item's k nearest items."""
        key, k = (settings["user_exponent"], settings["shrink"]), settings["neighbours"]
        if self._lists is None or self._lists[0] != key or self._lists[1].columns.shape[1] < min(k, self.interactions.num_items):
            self._lists = None
            of = self.interactions
            weights = of.user_scale(-key[0])
            norms = of.scaled(weights, of.item_scale(0.0)).to_items(of.like.new_ones(self.inputs.graph.num_users, 1)).sqrt().squeeze(1)

            def similarities(block: slice, rows: Tensor) -> Tensor:
                cosines = rows / (norms[block, None] * norms + key[1]).clamp(min=1e-30)
                return without_itself(block, cosines)

            lists = ItemLists.largest(((block, similarities(block, rows)) for block, rows in of.shared_users(weights)), k)
            self._lists = key, lists
        return self._lists[1].first(k)

    def vectors(self, settings: Settings) -> tuple[Tensor, Tensor]:
        of, lists = self.interactions, self.lists(settings)
        similar = lists.products()
        towards_items = Scores(of.num_items, similar.to_items, similar.to_users)  # S^T
        key = tuple(value for name, value in settings.items() if name != "rank")
        scores = chained(of.histories(), towards_items)
        return self.best_vectors(key, scores, settings["rank"], lambda: (of.dense_histories(), lists.dense()))


def neighbour_choice(num_items: int, start: int) -> Choice:
    """Returns the grid of numbers of neighbours below the number of items; at least the smallest stays."""
    values = tuple(k for k in NEIGHBOURS if k < max(num_items, NEIGHBOURS[0] + 1))
    return Choice(min(start, values[-1]), values)


def without_itself(block: slice, rows: Tensor) -> Tensor:
    """Sets the entries of a block of rows [n, num_items] that compare an item with itself to 0, in place; returns the rows."""
    rows[:, block].fill_diagonal_(0.0)
    return rows
