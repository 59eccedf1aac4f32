"""Defines what linear models have in common that keep for every item the items with the largest entries."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

from torch import Tensor

from .adjacency import Interactions, ItemLists, list_bytes
from .base import NEIGHBOURS, LinearTeacher
from .config import LinearConfig
from .fit import CatalogCounts, LinearInputs
from .search import Choice, Settings

Rows = Iterator[tuple[slice, Tensor]]  # of a matrix of items by items, in blocks, as `Interactions.shared_users` yields them


class SharedLists:
    """Keeps the largest entries of every row of a matrix of items by items, which trials of a search share.

    Args:
        num_items: The number of rows and columns.
    """

    def __init__(self, num_items: int) -> None:
        self._num_items = num_items
        self._lists: tuple[tuple[float, ...], ItemLists] | None = None

    def largest(self, key: tuple[float, ...], k: int, rows: Callable[[], Rows]) -> ItemLists:
        """Returns the k largest entries of every row, from those that are kept where they are of the same matrix and at least k.

        Args:
            key: The settings that decide the matrix.
            k: Entries that are kept in a row.
            rows: Yields the matrix.
        """
        if self._lists is None or self._lists[0] != key or self._lists[1].columns.shape[1] < min(k, self._num_items):
            self._lists = None  # its memory is free while the next one is made
            self._lists = key, ItemLists.largest(rows(), k)
        return self._lists[1].first(k)


class ListTeacher(LinearTeacher):
    """Keeps the k = `neighbours` largest entries of every row of a matrix of items by items, without its diagonal.

    Trials that differ in other settings than those of the matrix, or that ask for fewer neighbours, share the lists.
    """

    keeps_similarities: ClassVar[bool] = True

    def __init__(self, inputs: LinearInputs, config: LinearConfig) -> None:
        super().__init__(inputs, config)
        self._lists = SharedLists(self.interactions.num_items)

    @classmethod
    def fitting_bytes(cls, config: LinearConfig, counts: CatalogCounts) -> int:
        return list_bytes(counts.items, config.neighbours or NEIGHBOURS[-1]) + super().fitting_bytes(config, counts)

    @abstractmethod
    def key(self, settings: Settings) -> tuple[float, float]:
        """Returns the settings that decide the matrix."""

    @abstractmethod
    def rows(self, first: float, second: float) -> Rows:
        """Yields the matrix; the arguments are those of `key`."""

    def lists(self, settings: Settings) -> ItemLists:
        """Returns the k largest entries of every row."""
        key = self.key(settings)
        return self._lists.largest(key, settings["neighbours"], lambda: without_diagonal(self.rows(*key)))


def neighbour_choice(num_items: int, start: int) -> Choice:
    """Returns the grid of numbers of neighbours below the number of items; at least the smallest stays."""
    values = tuple(k for k in NEIGHBOURS if k < max(num_items, NEIGHBOURS[0] + 1))
    return Choice(min(start, values[-1]), values)


def graph_rows(of: Interactions, user_exponent: float, item_exponent: float, power: float = 1.0) -> Rows:
    """Yields the item graph N^T N with its entries raised to a power, where N = D_U^-a/2 A D_I^-b.

    Args:
        of: The train interactions A.
        user_exponent, item_exponent: a and b.
        power: Power of every entry.
    """
    scale = of.item_scale(-item_exponent).to(of.dtype)
    for block, rows in of.shared_users(of.user_scale(-user_exponent)):
        yield block, (scale[block, None] * rows * scale) ** power


def without_diagonal(matrix: Rows) -> Rows:
    """Yields a matrix with 0 where an item is compared with itself; changes the rows in place."""
    for block, rows in matrix:
        rows[:, block].fill_diagonal_(0.0)
        yield block, rows
