"""Neighbours of nodes anywhere in the partitioned graph: one request a hop and part, for users and items together.

Requests travel through DGL's RPC to the servers, which answer from the CSC matrix of their DGL partition; a client answers for the parts
of its own host itself, from the same shared memory. The draw is `core.sampling.sample_edges`: vectorised over all rows of a request, and
a function of seed, step, hop and node, so a run is reproducible and resumable. DGL's own sampler is neither (its servers draw from a
state of their own), and takes most of its time in bookkeeping for each row (benchmarks/README.md).
"""

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.blocks import Neighbours, neighbour_keys, sample_neighbours
from .adjacency import KINDS, mapped
from .partition import GRAPH_NAME

os.environ.setdefault("DGLBACKEND", "pytorch")  # DGL reads it when it is imported
from dgl.distributed import rpc

SERVICE_ID = 920_119
REPLY_SECONDS = 60.0


@dataclass(frozen=True)
class PartStructure:
    """One part's in-edges.

    Attributes:
        pointers: int64 [own nodes + 1 or more], rows: the part's users, then its items.
        columns: int64 [edges], local numbers of the neighbours.
        original: int64, dataset index by local number.
        weights: float32 [edges], Ã's entries.
        num_users: Users among the part's own nodes.
    """

    pointers: Tensor
    columns: Tensor
    original: Tensor
    weights: Tensor
    num_users: int

    @staticmethod
    def of(graph: Any, folder: Path, num_users: int) -> "PartStructure":
        """From DGL's partition (in shared memory) and the part's folder."""
        pointers, columns, _ = graph.adj_tensors("csc")
        return PartStructure(pointers, columns, mapped(folder / "orig.i64", "<i8"), mapped(folder / "weights.f32", "<f4"), num_users)

    def sample(self, rows: Tensor, fan_out: int, seed: int, step: int, hop: int) -> Neighbours:
        """Neighbours of own nodes, by local number int64 [n]."""
        keys = neighbour_keys((rows >= self.num_users).long(), self.original.index_select(0, rows), seed, step, hop)
        found = sample_neighbours(self.pointers, self.columns, self.weights, rows, fan_out, *keys)
        return Neighbours(found.pointers, self.original.index_select(0, found.ids), found.weights)


class NeighbourRequest(rpc.Request):
    """Asks a part's server for neighbours of its nodes."""

    def __init__(self, rows: Tensor, fan_out: int, seed: int, step: int, hop: int) -> None:
        self.rows, self.draw = rows, (fan_out, seed, step, hop)

    def __getstate__(self) -> tuple:
        return self.rows, self.draw

    def __setstate__(self, state: tuple) -> None:
        self.rows, self.draw = state

    def process_request(self, server_state: Any) -> "NeighbourResponse":
        """Runs in the server."""
        found = served_part(server_state).sample(self.rows, *self.draw)
        return NeighbourResponse(found.pointers, found.ids.int(), found.weights)


class NeighbourResponse(rpc.Response):
    """The neighbours: pointers, int32 dataset indices, weights."""

    def __init__(self, pointers: Tensor, ids: Tensor, weights: Tensor) -> None:
        self.found = pointers, ids, weights

    def __getstate__(self) -> tuple:
        return self.found

    def __setstate__(self, state: tuple) -> None:
        self.found = state


_served: dict[str, PartStructure] = {}


def served_part(server_state: Any) -> PartStructure:
    """The structure of the part that this server process serves."""
    if "part" not in _served:
        config = json.loads(Path(os.environ["DGL_CONF_PATH"]).read_text())
        part = server_state.partition_book.partid
        first, last = config["node_map"][KINDS[0]][part]
        folder = Path(config[f"part-{part}"]["part_graph"]).parent
        _served["part"] = PartStructure.of(server_state.graph, folder, last - first)
    return _served["part"]


def register() -> None:
    """Makes the request known to DGL's RPC; servers and clients call it before they connect."""
    rpc.register_service(SERVICE_ID, NeighbourRequest, NeighbourResponse)


class NodeNumbers:
    """Which part holds a node, and where: from graph/nodes/, memory-mapped.

    Attributes:
        starts: int64 [2 · num_parts + 1]: DGL's first node id of part 0's users, its items, part 1's users, ...
    """

    def __init__(self, folder: Path) -> None:
        node_map = json.loads((folder / f"{GRAPH_NAME}.json").read_text())["node_map"]
        ends = [node_map[kind][part][1] for part in range(len(node_map[KINDS[0]])) for kind in KINDS]
        self.starts = torch.tensor([0, *ends])
        self.new = [mapped(folder / "nodes" / f"{kind}.i64", "<i8") for kind in KINDS]

    @property
    def num_parts(self) -> int:
        return self.starts.numel() // 2

    def num_users(self, part: int) -> int:
        """Users that a part owns."""
        return int(self.starts[2 * part + 1] - self.starts[2 * part])

    def locate(self, side: int, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Part and local number (users before items) of nodes, int64 [n] each.

        Args:
            side: USERS or ITEMS.
            ids: int64 [n], dataset indices.
        """
        numbers = self.new[side].index_select(0, ids)
        parts = (torch.searchsorted(self.starts, numbers, right=True) - 1) // 2
        return parts, numbers - self.starts[2 * parts]


class NeighbourClient:
    """Asks for neighbours, over all parts; safe to use from several threads (DGL's RPC is not, hence the lock that others share).

    Args:
        numbers: Where nodes are.
        local: Structures of parts on this host.
        lock: Held during every call into DGL's RPC.
    """

    def __init__(self, numbers: NodeNumbers, local: dict[int, PartStructure], lock: threading.Lock) -> None:
        self.numbers, self.local, self.lock = numbers, local, lock

    def sampler(self, fan_outs: Sequence[int], seed: int, step: int) -> Any:
        """The `Sampler` of a step's blocks, with a fan-out for every hop."""

        def sample(users: Tensor, items: Tensor, hop: int) -> tuple[Neighbours, Neighbours]:
            return self.neighbours(users, items, fan_outs[hop], seed, step, hop)

        return sample

    def neighbours(
        self, users: Tensor, items: Tensor, fan_out: int = -1, seed: int = 0, step: int = 0, hop: int = 0
    ) -> tuple[Neighbours, Neighbours]:
        """Neighbours of users (items) and of items (users), in the order asked for.

        Args:
            users, items: int64, dataset indices.
            fan_out: Neighbours a node, -1 for all of them.
            seed, step, hop: Of the draw.
        """
        located = [self.numbers.locate(side, ids) for side, ids in enumerate((users, items))]
        parts, rows = (torch.cat(pair) for pair in zip(*located))
        order = torch.argsort(parts, stable=True)
        counts = torch.bincount(parts, minlength=self.numbers.num_parts).tolist()
        asked = dict(enumerate(rows[order].split(counts)))
        remote = [part for part, mine in asked.items() if mine.numel() and part not in self.local]
        found: dict[int, Neighbours] = {}
        with self.lock:
            waiting = rpc.send_requests_to_machine([(part, NeighbourRequest(asked[part], fan_out, seed, step, hop)) for part in remote])
            for part, structure in self.local.items():  # while the others work
                found[part] = structure.sample(asked[part], fan_out, seed, step, hop)
            if remote:
                for part, reply in zip(remote, rpc.recv_responses(waiting, int(REPLY_SECONDS * 1000))):
                    pointers, ids, weights = reply.found
                    found[part] = Neighbours(pointers, ids.long(), weights)
        return split_neighbours(join_neighbours([found[part] for part in sorted(found)], order), users.numel())


def join_neighbours(found: list[Neighbours], order: Tensor) -> Neighbours:
    """One answer from those of several parts; row k of them together is row `order[k]` of the answer."""
    if len(found) == 1:  # a stable sort of equal parts changed nothing
        return found[0]
    degrees = torch.cat([f.pointers.diff() for f in found])
    starts = torch.cat([degrees.new_zeros(1), degrees.cumsum(0)])
    back = torch.empty_like(order)
    back[order] = torch.arange(order.numel())
    wanted = degrees[back]
    pointers = torch.cat([wanted.new_zeros(1), wanted.cumsum(0)])
    places = torch.arange(int(pointers[-1])) + torch.repeat_interleave(starts[back] - pointers[:-1], wanted)
    ids, weights = torch.cat([f.ids for f in found]), torch.cat([f.weights for f in found])
    return Neighbours(pointers, ids.index_select(0, places), weights.index_select(0, places))


def split_neighbours(found: Neighbours, num_users: int) -> tuple[Neighbours, Neighbours]:
    """The answer for users, whose rows come first, and for items."""
    edge = int(found.pointers[num_users])
    users = Neighbours(found.pointers[: num_users + 1], found.ids[:edge], found.weights[:edge])
    return users, Neighbours(found.pointers[num_users:] - edge, found.ids[edge:], found.weights[edge:])
