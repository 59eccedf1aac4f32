"""Tables with a row for every user or item, sharded over the parts: DGL's distributed tensors, with one owner for each row.

A part's rows lie in its server's shared memory. Only the owner writes a row (ownership.py), so no two workers ever update the same one.
Owners read and write rows of their own host in place; `ShardedTable.pull` reads any row from anywhere.
"""

import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from dgl.distributed import DistGraph, DistTensor, kvstore, rpc
from torch import Tensor

from ...core.sides import SIDE_NAMES
from ..node_numbers import NodeNumbers
from ..ownership import Owners, Piece
from .neighbours import REPLY_SECONDS


@dataclass(frozen=True)
class TableSpace:
    """What the tables of a session share on one worker.

    Attributes:
        graph: DGL's DistGraph.
        numbers: Where the nodes lie.
        owners: Which worker owns a node's rows.
        rank: This worker.
        suffix: Ends the names of the session's tensors.
        local_parts: Parts on this host.
        unattended_parts: Parts whose host runs no worker.
        lock: Held during calls into DGL's RPC, which is not safe to use from several threads.
    """

    graph: DistGraph
    numbers: NodeNumbers
    owners: Owners
    rank: int
    suffix: str
    local_parts: Collection[int]
    unattended_parts: Collection[int]
    lock: threading.Lock


class ShardedTable:
    """One table over all users or items: a `RowTable`. Creating it is a collective call.

    Args:
        space: What the session's tables share.
        side: USERS or ITEMS.
        name: Unique within the session.
        dim: Columns, float32.
    """

    def __init__(self, space: TableSpace, side: int, name: str, dim: int) -> None:
        self._space, self.side, self.dim = space, side, dim
        self._policy = space.graph.get_node_partition_policy(SIDE_NAMES[side])
        if space.rank == 0:
            for part in space.unattended_parts:  # DGL makes a tensor on the hosts of its clients only
                self._make_on(part, name + space.suffix)
        with space.lock:  # persistent: a tensor's destructor would wait for the other clients
            self._tensor = DistTensor(
                (self._policy.get_size(), dim),
                torch.float32,
                name + space.suffix,
                part_policy=self._policy,
                init_func=zeros,
                persistent=True,
            )
        self._shards: list[Tensor | Piece] = []
        for piece in space.owners.own(side, space.rank):
            is_here = piece.part in space.local_parts
            self._shards.append(self._tensor.local_partition[piece.begin : piece.end] if is_here else piece)
        self._ends = torch.tensor([len(shard) for shard in self._shards], dtype=torch.int64).cumsum(0)

    def _make_on(self, part: int, name: str) -> None:
        """Creates the table's rows on the server of a part whose host runs no worker."""
        rows = self._space.numbers.size(self.side, part)
        full_name = str(self._policy.get_data_name(f"{name}_{rpc.get_group_id()}"))  # as DistTensor names it
        request = kvstore.InitDataRequest(full_name, (rows, self.dim), "float32", self._policy.policy_str, zeros)
        with self._space.lock:
            rpc.send_request(part, request)
            rpc.recv_response(int(REPLY_SECONDS * 1000))

    def __len__(self) -> int:
        """Number of rows that this worker owns."""
        return int(self._ends[-1]) if len(self._shards) else 0

    def read(self, places: Tensor) -> Tensor:
        """Reads own rows, float32 [n, dim].

        Args:
            places: int64 [n], places among the rows that this worker owns.
        """
        if len(self._shards) == 1 and isinstance(self._shards[0], Tensor):
            return torch.index_select(self._shards[0], 0, places)
        out = torch.empty(places.numel(), self.dim)
        for shard, chosen, within in self._split(places):
            out[chosen] = shard[within] if isinstance(shard, Tensor) else self._remote_read(shard, within)
        return out

    def write(self, places: Tensor, rows: Tensor) -> None:
        """Sets own rows; others see them after the next barrier.

        Args:
            places: int64 [n], distinct places among the rows that this worker owns.
            rows: float32 [n, dim].
        """
        if len(self._shards) == 1 and isinstance(self._shards[0], Tensor):
            self._shards[0].index_copy_(0, places, rows)
            return
        for shard, chosen, within in self._split(places):
            if isinstance(shard, Tensor):
                shard.index_copy_(0, within, rows[chosen])
            else:
                numbers = self._remote_places(shard, within)
                with self._space.lock:
                    self._tensor[numbers] = rows[chosen]  # returns before the server has them
                    self._tensor[numbers[:1]]  # answered after them: then a barrier makes them visible to all

    def pull(self, ids: Tensor) -> Tensor:
        """Reads rows of any nodes, float32 [n, dim].

        Args:
            ids: int64 [n], dataset indices.
        """
        if not ids.numel():
            return torch.zeros(0, self.dim)
        places = self._space.numbers.places(self.side, ids)
        with self._space.lock:
            return self._tensor[places]

    def _split(self, places: Tensor) -> Iterator[tuple[Tensor | Piece, Tensor, Tensor]]:
        """Yields every shard that has some of the places: the shard, which of the places [k] these are, and where in the shard [k]."""
        which = torch.searchsorted(self._ends, places, right=True)
        for number, shard in enumerate(self._shards):
            chosen = (which == number).nonzero().squeeze(1)
            if chosen.numel():
                yield shard, chosen, places[chosen] - (self._ends[number] - len(shard))

    def _remote_places(self, piece: Piece, within: Tensor) -> Tensor:
        return self._space.numbers.first_place(self.side, piece.part) + piece.begin + within

    def _remote_read(self, piece: Piece, within: Tensor) -> Tensor:
        with self._space.lock:
            return self._tensor[self._remote_places(piece, within)]


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Makes the rows of a new table; the servers import this function by name."""
    return torch.zeros(shape, dtype=dtype)
