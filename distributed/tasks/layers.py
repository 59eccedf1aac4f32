"""What a task's exact inference asks of an engine whose rows are sharded: tables, and layers over the whole graph."""

from collections.abc import Callable, Iterator
from typing import Protocol

from torch import Tensor

from ...graph_store.backend import RowTable
from ..engines.view import FeatureInputs

Layer = Callable[[int, Tensor, Tensor], Tensor]
Tables = tuple[RowTable, RowTable]


class LayerByLayer(Protocol):
    """Exact inference a chunk of own rows at a time; every call is collective, and what it wrote is visible to all when it returns.

    Tables are pairs, of users and of items, and live as long as the training: `tables` gives the same pair for a name again.
    """

    def tables(self, name: str, dim: int) -> Tables:
        """Returns the tables of a name, with a row of `dim` numbers for every user and item."""

    @property
    def ids(self) -> Tables:
        """Returns the ID vectors as they are."""

    def fill(self, target: Tables, rows: Callable[[int, Tensor, Tensor], Tensor]) -> None:
        """Writes own rows of both sides: `rows(side, places, ids)` for places int64 [n] among own rows, and their dataset indices."""

    def own_chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Places of own users and of own items, in runs: as many on every worker, the last ones may be empty."""

    def inputs(self, users: Tensor, items: Tensor) -> FeatureInputs:
        """Returns what reduction layers and prompt are computed from, for own users and items by place, without dropout."""

    def propagate(self, source: Tables, target: Tables, target_side: int) -> None:
        """Writes Ã x (or Ã^T x) into the target's table of one side, x from the source's table of the other."""

    def mean_of_layers(self, start: Tables, target: Tables, num_layers: int, layer: Layer | None) -> None:
        """Fills the target with the mean of layers 0 to `num_layers`.

        Args:
            start: Layer 0.
            target: Of the same width; may not be `start`.
            num_layers: Layers beside layer 0.
            layer: `layer(number, own, neighbours)`, from rows of the layer before and their neighbours' sums; None for the sums themselves.
        """

    def barrier(self) -> None:
        """Waits for all workers."""
