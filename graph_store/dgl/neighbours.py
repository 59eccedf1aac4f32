"""Neighbours of nodes anywhere in the partitioned graph: one request a hop and part, for users and items together.

Requests travel through DGL's RPC to the servers, which answer from the CSC matrix of their DGL partition; a client answers for the parts
of its own host itself, from the same shared memory. The draw is `core.sampling.sample_edges`: vectorised over all rows of a request, and
a function of seed, step, hop and node, so a run is reproducible and resumable. DGL's own sampler is neither (its servers draw from a
state of their own), and takes most of its time in bookkeeping for each row (benchmarks/README.md).
"""

import functools
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from dgl import DGLGraph
from dgl.distributed import rpc
from dgl.distributed.server_state import ServerState
from torch import Tensor

from ...core.blocks import Neighbours, Sampler, neighbour_keys, sample_neighbours
from ...core.sides import SIDE_NAMES, USERS
from ..flat_files import map_tensor
from ..node_numbers import NodeNumbers

SERVICE_ID = 920_119
REPLY_SECONDS = 60.0


@dataclass(frozen=True)
class PartStructure:
    """The in-edges of one part's own nodes.

    Attributes:
        pointers: int64 [own nodes + 1 or more], rows: the part's users, then its items.
        columns: int64 [edges], local numbers of the neighbours.
        original: int64 [nodes], dataset index by local number.
        weights: float32 [edges], Ã's entries.
        num_users: Users among the part's own nodes.
    """

    pointers: Tensor
    columns: Tensor
    original: Tensor
    weights: Tensor
    num_users: int

    @staticmethod
    def of(graph: DGLGraph, folder: Path, num_users: int) -> "PartStructure":
        """Reads a part.

        Args:
            graph: DGL's partition, in shared memory.
            folder: The part's folder in the graph/ artifact.
            num_users: Users among the part's own nodes.
        """
        pointers, columns, _ = graph.adj_tensors("csc")
        original, weights = map_tensor(folder / "orig.i64", "<i8"), map_tensor(folder / "weights.f32", "<f4")
        return PartStructure(pointers, columns, original, weights, num_users)

    def sample(self, rows: Tensor, fan_out: int, seed: int, step: int, hop: int) -> Neighbours:
        """Draws neighbours of own nodes.

        Args:
            rows: int64 [n], local numbers.
            fan_out: Neighbours a node, -1 for all of them.
            seed, step, hop: Keys of the draw.
        """
        keys = neighbour_keys((rows >= self.num_users).long(), self.original.index_select(0, rows), seed, step, hop)
        local = sample_neighbours(self.pointers, self.columns, self.weights, rows, fan_out, *keys)
        return Neighbours(local.pointers, self.original.index_select(0, local.ids), local.weights)


class NeighbourRequest(rpc.Request):
    """Asks a part's server for neighbours of its nodes; the arguments are those of `PartStructure.sample`."""

    def __init__(self, rows: Tensor, fan_out: int, seed: int, step: int, hop: int) -> None:
        self.rows, self.draw = rows, (fan_out, seed, step, hop)

    def __getstate__(self) -> tuple[Tensor, tuple[int, int, int, int]]:
        return self.rows, self.draw

    def __setstate__(self, state: tuple[Tensor, tuple[int, int, int, int]]) -> None:
        self.rows, self.draw = state

    def process_request(self, server_state: ServerState) -> "NeighbourResponse":
        """Answers the request; DGL calls it in the server."""
        drawn = served_part(server_state).sample(self.rows, *self.draw)
        return NeighbourResponse(drawn.pointers, drawn.ids.int(), drawn.weights)


class NeighbourResponse(rpc.Response):
    """The answer to a `NeighbourRequest`, with the fields of `Neighbours`; ids are int32 on their way."""

    def __init__(self, pointers: Tensor, ids: Tensor, weights: Tensor) -> None:
        self.fields = pointers, ids, weights

    def __getstate__(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.fields

    def __setstate__(self, state: tuple[Tensor, Tensor, Tensor]) -> None:
        self.fields = state

    def neighbours(self) -> Neighbours:
        """Unpacks the answer."""
        pointers, ids, weights = self.fields
        return Neighbours(pointers, ids.long(), weights)


@functools.cache
def served_part(server_state: ServerState) -> PartStructure:
    """Reads the structure of the part that this server process serves, once."""
    config = json.loads(Path(os.environ["DGL_CONF_PATH"]).read_text())
    part = server_state.partition_book.partid
    first, last = config["node_map"][SIDE_NAMES[USERS]][part]
    folder = Path(config[f"part-{part}"]["part_graph"]).parent
    return PartStructure.of(server_state.graph, folder, last - first)


def register() -> None:
    """Makes `NeighbourRequest` known to DGL's RPC; servers and clients call it before they connect."""
    rpc.register_service(SERVICE_ID, NeighbourRequest, NeighbourResponse)


class NeighbourClient:
    """Asks for neighbours over all parts: a `NeighbourSource`, safe to use from several threads.

    Args:
        numbers: Where the nodes lie.
        local: Structures of the parts on this host.
        lock: Held during every call into DGL's RPC, which is not safe to use from several threads; tables share it.
    """

    def __init__(self, numbers: NodeNumbers, local: Mapping[int, PartStructure], lock: threading.Lock) -> None:
        self.numbers, self.local, self.lock = numbers, local, lock

    def sampler(self, fan_outs: Sequence[int], seed: int, step: int) -> Sampler:
        """Makes the sampler of a step's blocks.

        Args:
            fan_outs: Neighbours a node by hop, -1 for all of them.
            seed, step: Keys of the draws.
        """

        def sample(users: Tensor, items: Tensor, hop: int) -> tuple[Neighbours, Neighbours]:
            return self.neighbours(users, items, fan_outs[hop], seed, step, hop)

        return sample

    def neighbours(
        self, users: Tensor, items: Tensor, fan_out: int = -1, seed: int = 0, step: int = 0, hop: int = 0
    ) -> tuple[Neighbours, Neighbours]:
        """Draws neighbours of users (items) and of items (users), in the order asked for.

        Args:
            users, items: int64, dataset indices.
            fan_out: Neighbours a node, -1 for all of them.
            seed, step, hop: Keys of the draw.
        """
        located = [self.numbers.locate(side, ids) for side, ids in enumerate((users, items))]
        parts, rows = (torch.cat(pair) for pair in zip(*located))
        order = torch.argsort(parts, stable=True)
        counts = torch.bincount(parts, minlength=self.numbers.num_parts).tolist()
        asked = dict(enumerate(rows[order].split(counts)))
        remote = [part for part, mine in asked.items() if mine.numel() and part not in self.local]
        answers: dict[int, Neighbours] = {}
        with self.lock:
            waiting = rpc.send_requests_to_machine([(part, NeighbourRequest(asked[part], fan_out, seed, step, hop)) for part in remote])
            for part, structure in self.local.items():  # while the others work
                answers[part] = structure.sample(asked[part], fan_out, seed, step, hop)
            if remote:
                for part, reply in zip(remote, rpc.recv_responses(waiting, int(REPLY_SECONDS * 1000))):
                    answers[part] = reply.neighbours()
        return split_neighbours(join_neighbours([answers[part] for part in sorted(answers)], order), users.numel())


def join_neighbours(answers: Sequence[Neighbours], order: Tensor) -> Neighbours:
    """Makes one answer from those of several parts; row k of them together is row `order[k]` of the answer."""
    if len(answers) == 1:  # a stable sort of equal parts changed nothing
        return answers[0]
    degrees = torch.cat([a.pointers.diff() for a in answers])
    starts = torch.cat([degrees.new_zeros(1), degrees.cumsum(0)])
    back = torch.empty_like(order)
    back[order] = torch.arange(order.numel())
    wanted = degrees[back]
    pointers = torch.cat([wanted.new_zeros(1), wanted.cumsum(0)])
    places = torch.arange(int(pointers[-1])) + torch.repeat_interleave(starts[back] - pointers[:-1], wanted)
    ids, weights = torch.cat([a.ids for a in answers]), torch.cat([a.weights for a in answers])
    return Neighbours(pointers, ids.index_select(0, places), weights.index_select(0, places))


def split_neighbours(together: Neighbours, num_users: int) -> tuple[Neighbours, Neighbours]:
    """Splits an answer into that for users, whose rows come first, and that for items."""
    edge = int(together.pointers[num_users])
    users = Neighbours(together.pointers[: num_users + 1], together.ids[:edge], together.weights[:edge])
    return users, Neighbours(together.pointers[num_users:] - edge, together.ids[edge:], together.weights[edge:])
