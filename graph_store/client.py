"""The worker's handle to the graph store: structure, degrees and feature rows; a DGL client while it is connected."""

import atexit
import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from ..core.graph import Csr
from ..core.storage import MANIFEST, open_artifact, read_json
from .adjacency import ITEM, USER, mapped
from .feature_rows import FeatureRows, map_features
from .partition import EDGE, GRAPH_NAME, files_of
from .servers import CALL_SECONDS, dgl_environment, write_session_config

WATCH_SECONDS = 1.0
EDGES_A_REQUEST = 1 << 20
DEAD_SERVER_EXIT = 13


@dataclass(frozen=True)
class ItemShard:
    """The items whose features one worker owns.

    Attributes:
        rows: Dataset indices of the items, int64 [n].
        features: Raw rows by modality, numpy [n, d_m], float16 or float32; memory-mapped where they lie on this host and are not int8.
        present: bool [n] by modality.
    """

    rows: Tensor
    features: dict[str, np.ndarray]
    present: dict[str, Tensor]


class GraphClient:
    """One worker's connection to a graph through DGL's distributed store; indices it takes and returns are the dataset's.

    A client runs on a host that serves a part. With two or more hosts, requests for nodes and edges of other parts go through DGL's
    RPC to their server.

    Attributes:
        graph: DGL's DistGraph.
        folder, manifest: The graph/ artifact on this host.
        rank: This worker.
        suffix: Ends the names of the session's tensors.
        numbers: Which part holds a node, and where.
        owners: Which worker owns a node's rows.
        unattended_parts: Parts whose host runs no worker.
        neighbours: Asks for neighbours.
        lock: Held during calls into DGL's RPC, which is not safe to use from several threads.
    """

    def __init__(self, graph: Any, session: dict, folder: Path, rank: int, worker_nodes: list[str]) -> None:
        from .embeddings import Owners
        from .neighbours import NeighbourClient, NodeNumbers, PartStructure

        self.graph, self.folder, self.rank, self.suffix = graph, folder, rank, f"_{session['session']}"
        self.manifest = read_json(str(folder / MANIFEST))
        self.num_users, self.num_items = self.manifest["num_users"], self.manifest["num_items"]
        self.numbers, self.lock = NodeNumbers(folder), threading.Lock()
        part_nodes = [node for node, _ in session["locations"]]
        self.owners = Owners(self.numbers, part_nodes, worker_nodes)
        self.local_parts = {
            part: PartStructure.of(graph.local_partition, folder / f"part{part}", self.numbers.num_users(part))
            for part, node in enumerate(part_nodes)
            if node == worker_nodes[rank]
        }
        self.unattended_parts = [part for part, node in enumerate(part_nodes) if node not in worker_nodes]
        self.neighbours = NeighbourClient(self.numbers, self.local_parts, self.lock)

    def _node_data(self, kind: str, name: str) -> Tensor:
        count = self.num_users if kind == USER else self.num_items
        return self.graph.nodes[kind].data[name + self.suffix][torch.arange(count)]

    def degrees(self) -> tuple[Tensor, Tensor]:
        """Train degrees of users and items, int64 [num_users] and [num_items]."""
        found = []
        for kind in (USER, ITEM):
            original, degree = self._node_data(kind, "orig"), self._node_data(kind, "degree")
            out = torch.empty_like(degree)
            out[original] = degree
            found.append(out)
        return found[0], found[1]

    def train_pairs(self) -> tuple[Tensor, Tensor]:
        """All train interactions, int64 [num_edges] each, sorted by user, then item: the order does not depend on the partition."""
        num_edges = self.graph.num_edges(EDGE)
        users, items = [], []
        for first in range(0, num_edges, EDGES_A_REQUEST):
            u, i = self.graph.find_edges(torch.arange(first, min(first + EDGES_A_REQUEST, num_edges)), etype=EDGE)
            users.append(u)
            items.append(i)
        user = self._node_data(USER, "orig")[torch.cat(users)]
        item = self._node_data(ITEM, "orig")[torch.cat(items)]
        order = torch.argsort(user * self.num_items + item)
        return user[order], item[order]

    def train_rows(self) -> Csr:
        """Train items of every user by dataset index, memory-mapped: what examples and negatives are drawn from."""
        folder = self.folder / "examples"
        return Csr(mapped(folder / "pointers.i64", "<i8"), mapped(folder / "items.i32", "<i4"), self.num_items)

    def original_items(self) -> Tensor:
        """The dataset index of every item in the parts' order, int64 [num_items]."""
        return self._node_data(ITEM, "orig")


def read_item_shard(session: dict, original_items: Tensor, rank: int, nodes_of_ranks: list[str]) -> ItemShard:
    """The items that a rank owns: those of a part on its host, shared among the host's ranks; each item has one owner.

    Features are memory-mapped where the part lies on the rank's host; else its server actor sends them once.

    Args:
        session: What the service's `restart` returned.
        original_items: As the client returns them.
        rank: This worker.
        nodes_of_ranks: Ray node id of every rank.
    """
    folder = _local_folder(session)
    manifest = read_json(str(folder / MANIFEST))
    modalities: dict[str, dict] = manifest["modalities"]
    rows, features, present = [], {m: [] for m in modalities}, {m: [] for m in modalities}  # type: ignore[var-annotated]
    for part, (first, last) in enumerate(manifest["part_items"]):
        node = session["locations"][part][0]
        owners = [r for r, n in enumerate(nodes_of_ranks) if n == node] or [part % len(nodes_of_ranks)]
        if rank not in owners:
            continue
        at = owners.index(rank)
        begin, end = ((last - first) * k // len(owners) for k in (at, at + 1))
        rows.append(original_items[first + begin : first + end])
        for modality in modalities:
            if node == nodes_of_ranks[rank]:
                found: FeatureRows = map_features(folder, manifest, part, modality)[begin:end]
            else:
                found = ray.get(session["servers"][part].feature_rows.remote(modality, begin, end), timeout=CALL_SECONDS)
            features[modality].append(found.values())
            present[modality].append(torch.from_numpy(np.array(found.present)))
    if not rows:
        empty = {m: np.zeros((0, i["dim"]), np.float32) for m, i in modalities.items()}
        return ItemShard(torch.zeros(0, dtype=torch.int64), empty, {m: torch.zeros(0, dtype=torch.bool) for m in empty})
    joined = {m: x[0] if len(x) == 1 else np.concatenate(x) for m, x in features.items()}
    return ItemShard(torch.cat(rows), joined, {m: torch.cat(p) for m, p in present.items()})


@contextlib.contextmanager
def connect(service: Any, session: dict, rank: int, worker_nodes: list[str]) -> Iterator[GraphClient]:
    """Connects this worker to a session's servers, and leaves together with its peers when the block ends without an error.

    A watchdog asks for dead servers every second and ends the process (exit code 13) when there is one: DGL's calls would hang for ever.
    The failure policy of the job then starts a new attempt with fresh servers.

    Args:
        service: The `GraphService` actor.
        session: What its `restart` returned, the same on every worker.
        rank: This worker.
        worker_nodes: Ray node id of every rank.
    """
    os.environ["DGLBACKEND"] = "pytorch"
    folder = _local_folder(session, rank, worker_nodes)
    workdir = Path(tempfile.mkdtemp(prefix=f"promptmm-{session['session']}-client-"))
    (workdir / "ip_config.txt").write_text(session["ip_config"])
    import dgl
    import dgl.distributed

    from .neighbours import register

    register()
    config = write_session_config(folder, [], session["session"], workdir)
    os.environ.update(dgl_environment(config, session["num_clients"]), DGL_ROLE="client", DGL_IP_CONFIG=str(workdir / "ip_config.txt"))
    done = threading.Event()
    threading.Thread(target=_watch, args=(service, done), daemon=True).start()
    dgl.distributed.initialize(str(workdir / "ip_config.txt"))
    atexit.unregister(dgl.distributed.exit_client)  # at exit it would wait at a barrier for peers that may be dead
    graph = dgl.distributed.DistGraph(f"{GRAPH_NAME}_{session['session']}")
    client = GraphClient(graph, session, folder, rank, worker_nodes)
    try:
        yield client
        del client.graph, graph
        done.set()
        dgl.distributed.exit_client()
    finally:
        done.set()
        shutil.rmtree(workdir, ignore_errors=True)


def _local_folder(session: dict, rank: int = 0, worker_nodes: Sequence[str] = ()) -> Path:
    """The artifact's folder on this host, its server's copy or a shared file system's, with the parts that the rank owns rows of."""
    here, part_nodes = ray.get_runtime_context().get_node_id(), [node for node, _ in session["locations"]]
    folder = Path(dict(session["locations"]).get(here, session["locations"][0][1]))
    # A part whose host runs no worker is another host's, as `Owners` says.
    foreign = [p for p, node in enumerate(part_nodes) if worker_nodes and node not in worker_nodes and p % len(worker_nodes) == rank]
    if folder.is_dir() and all((folder / f"part{part}").is_dir() for part in foreign):
        return folder
    return open_artifact(session["graph_url"], "graph", session["cache_dir"], files_of(foreign))[0]


def _watch(service: Any, done: threading.Event) -> None:
    while not done.wait(WATCH_SECONDS):
        try:
            dead = ray.get(service.dead_servers.remote(), timeout=CALL_SECONDS)
        except Exception as error:  # the supervisor itself is gone
            dead = [f"graph service does not answer ({type(error).__name__})"]
        if dead and not done.is_set():
            print("leaving: " + "; ".join(dead), flush=True)
            os._exit(DEAD_SERVER_EXIT)
