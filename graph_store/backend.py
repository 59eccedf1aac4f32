"""What a trainer asks of a graph backend: protocols, which graph_store/dgl/ implements with DGL.

Another backend has to give, for each worker, a `GraphConnection` over a `Session`; nothing above the graph store knows more than that.
All indices are the dataset's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..core.blocks import Neighbours, Sampler
from ..core.graph import Csr
from .own_features import OwnFeatures
from .ownership import Owners


class RowTable(Protocol):
    """One table over all users or items, with one owner for each row; places count among the rows that this worker owns.

    Attributes:
        side: USERS or ITEMS.
        dim: Columns, float32.
    """

    side: int
    dim: int

    def __len__(self) -> int:
        """Number of rows that this worker owns."""

    def read(self, places: Tensor) -> Tensor:
        """Reads own rows, float32 [n, dim], at int64 [n] places."""

    def write(self, places: Tensor, rows: Tensor) -> None:
        """Sets own rows, float32 [n, dim], at int64 [n] distinct places; others see them after the next barrier."""

    def pull(self, ids: Tensor) -> Tensor:
        """Reads any rows, float32 [n, dim], of int64 [n] dataset indices."""


class NeighbourSource(Protocol):
    """Neighbours of nodes anywhere in the graph; safe to use from several threads."""

    def sampler(self, fan_outs: Sequence[int], seed: int, step: int) -> Sampler:
        """Makes the sampler of a step's blocks, with a fan-out for every hop, -1 for all neighbours."""

    def neighbours(
        self, users: Tensor, items: Tensor, fan_out: int = -1, seed: int = 0, step: int = 0, hop: int = 0
    ) -> tuple[Neighbours, Neighbours]:
        """Draws neighbours of int64 users (items) and of int64 items (users), a function of seed, step, hop and node alone."""


class GraphConnection(Protocol):
    """One worker's connection to a graph, for the time of a session."""

    @property
    def rank(self) -> int:
        """This worker."""

    @property
    def folder(self) -> Path:
        """The graph/ artifact on this host, with the parts that this worker owns rows of."""

    @property
    def manifest(self) -> dict:
        """The artifact's manifest."""

    @property
    def num_users(self) -> int:
        """Users of the catalog."""

    @property
    def num_items(self) -> int:
        """Items of the catalog."""

    @property
    def owners(self) -> Owners:
        """Which worker owns which user and item."""

    @property
    def neighbours(self) -> NeighbourSource:
        """Neighbours of any nodes."""

    def table(self, side: int, name: str, dim: int) -> RowTable:
        """Creates a table of zeros over the users or items; a collective call. The name is unique within the session."""

    def own_ids(self, side: int) -> Tensor:
        """Reads the dataset indices of what this worker owns, int64 [n]."""

    def own_degrees(self, side: int) -> Tensor:
        """Reads the numbers of train interactions of what this worker owns, int32 [n]."""

    def own_features(self, modality: str) -> OwnFeatures:
        """Opens the feature rows of the items that this worker owns."""

    def train_rows(self) -> Csr:
        """Maps the train items of every user to memory: what examples and negatives are drawn from."""

    def train_pairs(self) -> tuple[Tensor, Tensor]:
        """Reads all train interactions, int64 users [num_edges] and items [num_edges], sorted by user, then item."""

    def degrees(self) -> tuple[Tensor, Tensor]:
        """Reads the numbers of train interactions of all users [num_users] and items [num_items], int64."""

    def original_items(self) -> Tensor:
        """Reads the dataset index of every item in the parts' order, int64 [num_items]."""
