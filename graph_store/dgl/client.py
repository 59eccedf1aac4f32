"""The worker's connection to a graph through DGL's distributed store."""

import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from dgl.distributed import DistGraph
from torch import Tensor

from ...core.artifact import MANIFEST
from ...core.graph import Csr
from ...core.sides import ITEMS, SIDE_NAMES, SIDES, USERS
from ...core.storage import read_json
from ..flat_files import map_tensor
from ..graph_artifact import EDGE
from ..node_numbers import NodeNumbers
from ..own_features import OwnFeatures
from ..ownership import Owners
from ..session import Session
from .neighbours import NeighbourClient, PartStructure
from .tables import ShardedTable, TableSpace

EDGES_A_REQUEST = 1 << 20


class GraphClient:
    """A `GraphConnection`: one worker's client of the session's DGL servers; indices it takes and returns are the dataset's.

    A client runs on a host that serves a part. With two or more hosts, requests for nodes and edges of other parts go through DGL's
    RPC to their server.

    Args:
        graph: DGL's DistGraph.
        session: The servers.
        folder: The graph/ artifact on this host, with the parts that this worker owns rows of.
        rank: This worker.
        worker_nodes: Host of every rank, as the session names hosts.

    Attributes:
        manifest: The artifact's manifest.
        numbers: Where the nodes lie.
        owners: Which worker owns a node's rows.
        neighbours: Asks for neighbours.
        space: What the session's tables share.
    """

    def __init__(self, graph: DistGraph, session: Session, folder: Path, rank: int, worker_nodes: Sequence[str]) -> None:
        self.folder, self.rank, self.manifest = folder, rank, read_json(str(folder / MANIFEST))
        self.num_users, self.num_items = self.manifest["num_users"], self.manifest["num_items"]
        self.numbers, part_nodes, lock = NodeNumbers(folder), session.part_nodes, threading.Lock()
        self.owners = Owners(self.numbers, part_nodes, worker_nodes)
        local_parts = {
            part: PartStructure.of(graph.local_partition, folder / f"part{part}", self.numbers.size(USERS, part))
            for part, node in enumerate(part_nodes)
            if node == worker_nodes[rank]
        }
        unattended_parts = [part for part, node in enumerate(part_nodes) if node not in worker_nodes]
        self.neighbours = NeighbourClient(self.numbers, local_parts, lock)
        self.space = TableSpace(
            graph, self.numbers, self.owners, rank, f"_{session.name}", list(local_parts), unattended_parts, lock
        )  # fmt: skip

    def table(self, side: int, name: str, dim: int) -> ShardedTable:
        """Creates a table of zeros over the users or items; a collective call.

        Args:
            side: USERS or ITEMS.
            name: Unique within the session.
            dim: Columns, float32.
        """
        return ShardedTable(self.space, side, name, dim)

    def own_ids(self, side: int) -> Tensor:
        """Reads the dataset indices of what this worker owns, int64 [n], memory-mapped where it is one piece."""
        return self.owners.own_ids(side, self.rank, self.folder)

    def own_degrees(self, side: int) -> Tensor:
        """Reads the numbers of train interactions of what this worker owns, int32 [n], memory-mapped where it is one piece."""
        return self.owners.own_degrees(side, self.rank, self.folder)

    def own_features(self, modality: str) -> OwnFeatures:
        """Opens the feature rows of the items that this worker owns."""
        return OwnFeatures(self.owners.own(ITEMS, self.rank), self.folder, self.manifest, modality)

    def train_rows(self) -> Csr:
        """Maps the train items of every user to memory: what examples and negatives are drawn from."""
        folder = self.folder / "examples"
        return Csr(map_tensor(folder / "pointers.i64", "<i8"), map_tensor(folder / "items.i32", "<i4"), self.num_items)

    def train_pairs(self) -> tuple[Tensor, Tensor]:
        """Reads all train interactions from the servers, int64 users [num_edges] and items [num_edges].

        They are sorted by user, then item: the order does not depend on the partition.
        """
        graph = self.space.graph
        num_edges = graph.num_edges(EDGE)
        users, items = [], []
        for first in range(0, num_edges, EDGES_A_REQUEST):
            u, i = graph.find_edges(torch.arange(first, min(first + EDGES_A_REQUEST, num_edges)), etype=EDGE)
            users.append(u)
            items.append(i)
        user = self._node_data(USERS, "orig")[torch.cat(users)]
        item = self._node_data(ITEMS, "orig")[torch.cat(items)]
        order = torch.argsort(user * self.num_items + item)
        return user[order], item[order]

    def degrees(self) -> tuple[Tensor, Tensor]:
        """Reads the train degrees of users and items from the servers, int64 [num_users] and [num_items]."""
        by_side = []
        for side in SIDES:
            original, degree = self._node_data(side, "orig"), self._node_data(side, "degree")
            by_index = torch.empty_like(degree)
            by_index[original] = degree
            by_side.append(by_index)
        return by_side[USERS], by_side[ITEMS]

    def original_items(self) -> Tensor:
        """Reads the dataset index of every item in the parts' order, int64 [num_items]."""
        return self._node_data(ITEMS, "orig")

    def _node_data(self, side: int, name: str) -> Tensor:
        count = (self.num_users, self.num_items)[side]
        return self.space.graph.nodes[SIDE_NAMES[side]].data[name + self.space.suffix][torch.arange(count)]
