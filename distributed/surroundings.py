"""What an executor gives to a job's worker: how it reaches the graph, labels and people. The job itself says what to do."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from ..core.graph import BipartiteGraph
from ..graph_store.backend import GraphConnection
from ..graph_store.dataset import Dataset
from ..graph_store.own_features import ItemShard
from .loop.recorder import print_line
from .messages import LabelJob
from .worker import Worker


class GraphAccess(Protocol):
    """How a worker reaches the train graph and the features."""

    def whole(self, worker: Worker, with_features: bool) -> tuple[BipartiteGraph, Callable[[], ItemShard]]:
        """Returns the whole train graph, and what reads the raw features of this worker's items; collective.

        Args:
            worker: This worker.
            with_features: Whether features will be read; where not, the graph may come from nearer by.
        """

    def connect(self, worker: Worker) -> AbstractContextManager[GraphConnection]:
        """Returns a connection to the sharded graph while the block runs; collective."""


@dataclass(frozen=True)
class Surroundings:
    """Of one job on one worker.

    Attributes:
        dataset: The run's dataset.
        graph: The graph.
        stream_labels: A shard's blocks of some epochs in order, without the blocks that hold no row of it.
        show: Shows a line to the person who started the run.
        labelers: Who makes streamed labels, for messages.
    """

    dataset: Dataset
    graph: GraphAccess
    stream_labels: Callable[[LabelJob, range], Iterator[pa.Table]]
    show: Callable[[str], None] = print_line
    labelers: str = "a labeler in this process"
