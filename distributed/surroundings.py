"""Defines what an executor gives to a job's worker: the ways to the graph, the labels and people. The job itself says what to do."""

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
    """Describes how a worker reaches the train graph and the features."""

    def whole(self, worker: Worker, with_features: bool) -> tuple[BipartiteGraph, Callable[[], ItemShard]]:
        """Returns the whole train graph, and a function that reads the raw features of this worker's items; collective.

        Args:
            worker: This worker.
            with_features: Whether features will be read; otherwise the graph may come from a source that has no features.
        """

    def connect(self, worker: Worker) -> AbstractContextManager[GraphConnection]:
        """Returns a context that holds a connection to the sharded graph; collective."""


@dataclass(frozen=True)
class Surroundings:
    """Holds the ways of one job's worker to everything that the job does not carry.

    Attributes:
        dataset: The run's dataset.
        graph: Access to the train graph and the features.
        stream_labels: Streams the label blocks of some epochs in order, for a job's share, without blocks that hold no row of it.
        show: Shows a line to the person who started the run.
        labelers: Names the labelers of streamed labels in messages.
    """

    dataset: Dataset
    graph: GraphAccess
    stream_labels: Callable[[LabelJob, range], Iterator[pa.Table]]
    show: Callable[[str], None] = print_line
    labelers: str = "a labeler in this process"
