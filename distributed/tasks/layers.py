"""Defines what an engine with sharded rows offers to a task's exact inference: tables, and layers over the whole graph."""

from collections.abc import Callable, Iterator
from typing import Protocol

from torch import Tensor

from ...graph_store.backend import RowTable
from ..engines.view import FeatureInputs

Layer = Callable[[int, Tensor, Tensor], Tensor]
Tables = tuple[RowTable, RowTable]


class LayerByLayer(Protocol):
    """Computes exact inference, in which each worker writes the rows that it owns, a chunk at a time.

    Every call is collective, and all workers see what it has written when it returns. Tables come in pairs, one of users and one of items,
    and last as long as the training.
    """

    def tables(self, name: str, dim: int) -> Tables:
        """Returns the pair of tables with this name, and makes it at the first call; each user and item has a row of `dim` numbers."""

    @property
    def ids(self) -> Tables:
        """Returns the tables of the current ID vectors."""

    def fill(self, target: Tables, rows: Callable[[int, Tensor, Tensor], Tensor]) -> None:
        """Writes the rows that this worker owns, on both sides.

        Args:
            target: The tables to write.
            rows: `rows(side, places, ids)` returns float [n, dim] for places, int64 [n], among this worker's own rows of the side; `ids`
                are the places' dataset indices, int64 [n].
        """

    def own_chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields runs of places among this worker's own users and own items; every worker gets as many runs, the last may be empty."""

    def inputs(self, users: Tensor, items: Tensor) -> FeatureInputs:
        """Returns the inputs of reduction layers and prompt, without dropout, for own users and items by place, int64 [n] and [m]."""

    def propagate(self, source: Tables, target: Tables, target_side: int) -> None:
        """Writes Ã x (or Ã^T x) into the target's table of `target_side`; x is the source's table of the other side."""

    def mean_of_layers(self, start: Tables, target: Tables, num_layers: int, layer: Layer | None) -> None:
        """Fills the target with the mean of layers 0 to `num_layers`.

        Args:
            start: Layer 0; the tables may be overwritten.
            target: Tables of the same width, other than `start`.
            num_layers: The number of layers beside layer 0.
            layer: `layer(number, own, neighbours)` computes layer `number` + 1, [n, d], as `LayeredStudent.layer` does; None takes the
                sums over the neighbours as the next layer.
        """

    def barrier(self) -> None:
        """Waits for all workers."""
