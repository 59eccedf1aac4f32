"""The train graph and features from the dataset itself, for one worker in this process."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ...core.errors import InputError
from ...core.graph import BipartiteGraph
from ...graph_store.backend import GraphConnection
from ...graph_store.dataset import Dataset
from ...graph_store.own_features import ItemShard
from ..worker import Worker


def train_graph(dataset: Dataset) -> BipartiteGraph:
    """The train graph of a dataset."""
    train = dataset.csr("train")
    return BipartiteGraph.from_pairs(train.rows, train.columns, dataset.num_users, dataset.num_items)


@dataclass(frozen=True)
class DatasetGraph:
    """The graph in this process; a `GraphAccess`.

    Attributes:
        dataset: The run's dataset.
        graph_url: The run's graph/, which the sampled engine reads; None where there is none.
        cache_dir: Folder for local copies where that is remote.
    """

    dataset: Dataset
    graph_url: str | None = None
    cache_dir: str | None = None

    def whole(self, worker: Worker, with_features: bool) -> tuple[BipartiteGraph, Callable[[], ItemShard]]:
        """See `GraphAccess`."""
        assert worker.world_size == 1, "workers share a catalog through the graph store"
        return train_graph(self.dataset), self._item_shard

    def _item_shard(self) -> ItemShard:
        loaded = {m: self.dataset.features(m) for m in self.dataset.modalities}
        rows, present = {m: x for m, (x, _) in loaded.items()}, {m: torch.from_numpy(p) for m, (_, p) in loaded.items()}
        return ItemShard(torch.arange(self.dataset.num_items), rows, present)

    @contextlib.contextmanager
    def connect(self, worker: Worker) -> Iterator[GraphConnection]:
        """See `GraphAccess`; DGL's standalone store runs the code of its servers in this process, for a graph of one part."""
        from ...graph_store.dgl.standalone import connect_alone

        if self.graph_url is None:
            raise InputError("cluster.engine=sampled trains from graph/, and there is none here; run partition first")
        yield connect_alone(self.graph_url, self.cache_dir)
