"""Defines what linear models have in common that keep for every item the items with the largest entries."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from .adjacency import Interactions, ItemLists, list_bytes
from .base import NEIGHBOURS, LinearTeacher
from .config import LinearConfig
from .fit import CatalogCounts, LinearInputs
from .search import Choice, Settings


class ListTeacher(LinearTeacher):
    """Keeps the k = `neighbours` largest entries of every row of a matrix of items by items, without its diagonal.

    Trials that differ in other settings than those of the matrix, or that ask for fewer neighbours, share the lists.
    """

    keeps_similarities: ClassVar[bool] = True

    def __init__(self, inputs: LinearInputs, config: LinearConfig) -> None:
        super().__init__(inputs, config)
        self._lists: tuple[tuple[float, float], ItemLists] | None = None

    @classmethod
    def fitting_bytes(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        return list_bytes(counts.items, config.neighbours or NEIGHBOURS[-1]) + super().fitting_bytes(config, counts)

    @abstractmethod
    def key(self, settings: Settings) -> tuple[float, float]:
        """Returns the settings that decide the matrix."""

    @abstractmethod
    def rows(self, first: float, second: float) -> Iterator[tuple[slice, Tensor]]:
        """Yields the matrix a block of rows at a time, as `Interactions.shared_users` does; the arguments are those of `key`."""

    def lists(self, settings: Settings) -> ItemLists:
        """Returns the k largest entries of every row."""
        key, k = self.key(settings), settings["neighbours"]
        if self._lists is None or self._lists[0] != key or self._lists[1].columns.shape[1] < min(k, self.interactions.num_items):
            self._lists = None  # its memory is free while the next one is made
            self._lists = key, ItemLists.largest(((block, without_itself(block, rows)) for block, rows in self.rows(*key)), k)
        return self._lists[1].first(k)


class GraphLists:
    """Keeps the largest entries of every row of the item graph N^T N, with N = D_U^-a/2 A D_I^-b.

    Trials that differ in other settings, or that ask for fewer entries, share them.

    Args:
        interactions: The train interactions A.
        keeps_diagonal: Whether an item may be among the neighbours of itself.
    """

    def __init__(self, interactions: Interactions, keeps_diagonal: bool) -> None:
        self._of, self._keeps_diagonal = interactions, keeps_diagonal
        self._lists: tuple[tuple[float, float, float], ItemLists] | None = None

    def largest(self, user_exponent: float, item_exponent: float, power: float, k: int) -> ItemLists:
        """Returns the k largest entries of every row.

        Args:
            user_exponent, item_exponent: a and b.
            power: Power of every entry.
            k: Entries that are kept in a row.
        """
        of, key = self._of, (user_exponent, item_exponent, power)
        if self._lists is None or self._lists[0] != key or self._lists[1].columns.shape[1] < min(k, of.num_items):
            self._lists = None  # its memory is free while the next one is made
            scale = of.item_scale(-item_exponent).to(of.dtype)
            blocks = of.shared_users(of.user_scale(-user_exponent))
            scaled_blocks = ((block, (scale[block, None] * rows * scale) ** power) for block, rows in blocks)
            if not self._keeps_diagonal:
                scaled_blocks = ((block, without_itself(block, rows)) for block, rows in scaled_blocks)
            self._lists = key, ItemLists.largest(scaled_blocks, k)
        return self._lists[1].first(k)


def neighbour_choice(num_items: int, start: int) -> Choice:
    """Returns the grid of numbers of neighbours below the number of items; at least the smallest stays."""
    values = tuple(k for k in NEIGHBOURS if k < max(num_items, NEIGHBOURS[0] + 1))
    return Choice(min(start, values[-1]), values)


def without_itself(block: slice, rows: Tensor) -> Tensor:
    """Sets the entries of a block of rows [n, num_items] that compare an item with itself to 0, in place; returns the rows."""
    rows[:, block].fill_diagonal_(0.0)
    return rows
