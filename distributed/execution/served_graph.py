"""The train graph and features through the graph servers, for workers of Ray."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor

from ...core.errors import InputError
from ...core.graph import BipartiteGraph
from ...graph_store.backend import GraphConnection
from ...graph_store.dataset import Dataset
from ...graph_store.dgl.connection import connect
from ...graph_store.dgl.item_shard import read_item_shard
from ...graph_store.own_features import ItemShard
from ...graph_store.session import Session
from ..progress import saying_if_slow, show_here
from ..worker import Worker
from .dataset_graph import train_graph

SERVICE_SECONDS = 180.0


@dataclass(frozen=True)
class ServedGraph:
    """The graph behind the graph servers; a `GraphAccess`.

    Attributes:
        service: The supervisor of the graph servers; None for a job that reads no more than the train interactions.
        dataset: The run's dataset.
        show: Shows a line on the driver's terminal.
    """

    service: ActorHandle | None
    dataset: Dataset
    show: Callable[[str], None] = show_here

    def whole(self, worker: Worker, with_features: bool) -> tuple[BipartiteGraph, Callable[[], ItemShard]]:
        """See `GraphAccess`; rank 0 alone is a client of the servers, since hosts without a part of the graph cannot be."""
        if self.service is None:
            assert not with_features
            return train_graph(self.dataset), _no_features
        session = self._session(worker, num_clients=1)
        structure = worker.share(self._read_structure(session, worker) if worker.is_first else None)
        assert structure is not None, "rank 0 has read it"
        users, items, num_users, num_items, original_items = structure
        graph = BipartiteGraph.from_pairs(users, items, num_users, num_items)
        return graph, lambda: read_item_shard(session, original_items, worker.rank, list(worker.nodes))

    @contextlib.contextmanager
    def connect(self, worker: Worker) -> Iterator[GraphConnection]:
        """See `GraphAccess`; every worker is a client of the servers."""
        assert self.service is not None
        with connect(self.service, self._session(worker, worker.world_size), worker.rank, list(worker.nodes)) as connection:
            yield connection

    def _session(self, worker: Worker, num_clients: int) -> Session:
        """A fresh set of servers, which rank 0 starts for all."""
        session: Session | None = None
        if worker.is_first:
            assert self.service is not None
            with saying_if_slow(self.show, "waiting for graph servers"):
                session = cast(Session, ray.get(self.service.restart.remote(list(worker.nodes), num_clients), timeout=SERVICE_SECONDS))
        shared = worker.share(session)
        assert shared is not None, "rank 0 has asked for it"
        return shared

    def _read_structure(self, session: Session, worker: Worker) -> tuple[Tensor, Tensor, int, int, Tensor]:
        """All train pairs, both counts, and the items in the parts' order; checked against the degrees."""
        assert self.service is not None
        with connect(self.service, session, worker.rank, list(worker.nodes)) as connection:
            users, items = connection.train_pairs()
            counts = connection.num_users, connection.num_items
            counted = [torch.bincount(ids, minlength=count) for ids, count in zip((users, items), counts)]
            if not all(torch.equal(degrees, count) for degrees, count in zip(connection.degrees(), counted)):
                raise InputError(f"{session.graph_url}: degrees and edges do not agree; add run.redo=partition")
            return users, items, *counts, connection.original_items()


def _no_features() -> ItemShard:
    raise AssertionError("a job without a graph service reads no features")
