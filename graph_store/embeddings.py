"""Tables with a row for every user or item, sharded over the parts: DGL's distributed tensors, with one owner for each row.

A part's rows lie in its server's shared memory. They are owned by the workers on its host, in equal runs, or by one worker elsewhere
where its host has none; only the owner writes a row, so no two workers ever update the same one. Owners read and write rows of their own
host in place; `ShardedTable.pull` reads any row from anywhere.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .adjacency import KINDS, mapped
from .feature_rows import map_features
from .neighbours import REPLY_SECONDS, NodeNumbers

if TYPE_CHECKING:
    from .client import GraphClient


@dataclass(frozen=True)
class Piece:
    """A run of one part's nodes of one kind, and its owner.

    Attributes:
        part: The part.
        begin, end: Places among the part's nodes of that kind.
        rank: The worker that owns it.
    """

    part: int
    begin: int
    end: int
    rank: int

    def __len__(self) -> int:
        return self.end - self.begin


class Owners:
    """Which worker owns which user and item.

    Args:
        numbers: Where nodes are.
        part_nodes: Ray node id of every part's host.
        worker_nodes: Ray node id of every rank.
    """

    def __init__(self, numbers: NodeNumbers, part_nodes: list[str], worker_nodes: list[str]) -> None:
        self.numbers, self.pieces = numbers, ([], [])  # type: ignore[var-annotated]
        starts, ranks, firsts = ([], []), ([], []), ([], [])  # type: ignore[var-annotated]
        owned = [[0] * len(worker_nodes) for _ in KINDS]
        for part, node in enumerate(part_nodes):
            here = [rank for rank, n in enumerate(worker_nodes) if n == node] or [part % len(worker_nodes)]
            for side in range(len(KINDS)):
                first, last = numbers.starts[2 * part + side : 2 * part + side + 2].tolist()
                for place, rank in enumerate(here):
                    begin, end = ((last - first) * k // len(here) for k in (place, place + 1))
                    if begin == end:
                        continue
                    self.pieces[side].append(Piece(part, begin, end, rank))
                    starts[side].append(first + begin)
                    ranks[side].append(rank)
                    firsts[side].append(owned[side][rank])
                    owned[side][rank] += end - begin
        self._starts, self._ranks, self._firsts = ([torch.tensor(x) for x in each] for each in (starts, ranks, firsts))

    def find(self, side: int, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The owner of each node and its place among all that the owner owns, int64 [n] each.

        Args:
            side: USERS or ITEMS.
            ids: int64 [n], dataset indices.
        """
        numbers = self.numbers.new[side].index_select(0, ids)
        piece = torch.searchsorted(self._starts[side], numbers, right=True) - 1
        return self._ranks[side][piece], self._firsts[side][piece] + numbers - self._starts[side][piece]

    def own(self, side: int, rank: int) -> list[Piece]:
        """A worker's pieces, in the order of its places."""
        return [piece for piece in self.pieces[side] if piece.rank == rank]

    def own_ids(self, side: int, rank: int, folder: Path) -> Tensor:
        """Dataset indices of what a worker owns, int64, memory-mapped where it is one piece.

        Args:
            folder: The graph/ artifact.
        """
        return self._own_values(side, rank, folder, "orig.i64", "<i8")

    def own_degrees(self, side: int, rank: int, folder: Path) -> Tensor:
        """Train interactions of what a worker owns, int32, memory-mapped where it is one piece."""
        return self._own_values(side, rank, folder, "degrees.i32", "<i4")

    def _own_values(self, side: int, rank: int, folder: Path, name: str, dtype: str) -> Tensor:
        found = []
        for piece in self.own(side, rank):
            first = self.numbers.num_users(piece.part) if side else 0
            found.append(mapped(folder / f"part{piece.part}" / name, dtype)[first + piece.begin : first + piece.end])
        return found[0] if len(found) == 1 else torch.cat([torch.from_numpy(np.zeros(0, dtype)), *found])


class OwnFeatures:
    """Raw rows of one modality for the items that a worker owns, memory-mapped from the parts.

    Args:
        pieces: The worker's pieces of the items.
        folder, manifest: The graph/ artifact.
        modality: Which one.
    """

    def __init__(self, pieces: list[Piece], folder: Path, manifest: dict, modality: str) -> None:
        self.dim = manifest["modalities"][modality]["dim"]
        self._rows = [map_features(folder, manifest, p.part, modality)[p.begin : p.end] for p in pieces]
        self._ends = torch.tensor([0, *map(len, pieces)]).cumsum(0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [n, dim] in the stored type (int8 rows dequantised to float32) and presence, bool [n].

        Args:
            places: int64 [n], places among the items that the worker owns.
        """
        if len(self._rows) == 1:
            return self._rows[0].read(places)
        dtype = self._rows[0].dtype if self._rows else torch.float32
        rows, present = torch.zeros(places.numel(), self.dim, dtype=dtype), torch.zeros(places.numel(), dtype=torch.bool)
        which = torch.searchsorted(self._ends, places, right=True) - 1
        for piece, own in enumerate(self._rows):
            chosen = (which == piece).nonzero().squeeze(1)
            rows[chosen], present[chosen] = own.read(places[chosen] - self._ends[piece])
        return rows, present


class ShardedTable:
    """One table over all users or items.

    Args:
        client: The worker's `GraphClient`.
        side: USERS or ITEMS.
        name: Unique within the session; creating a table is a collective call.
        dim: Columns, float32.
    """

    def __init__(self, client: "GraphClient", side: int, name: str, dim: int) -> None:
        from dgl.distributed import DistTensor

        self._client, self.side, self.dim = client, side, dim
        numbers, policy = client.numbers, client.graph.get_node_partition_policy(KINDS[side])
        if client.rank == 0:
            for part in client.unattended_parts:  # DGL makes a tensor on the hosts of its clients only
                self._make_on(part, policy, name + client.suffix, dim)
        with client.lock:  # persistent: a tensor's destructor would wait for the other clients
            self._tensor = DistTensor(
                (policy.get_size(), dim), torch.float32, name + client.suffix, part_policy=policy, init_func=zeros, persistent=True
            )
        sizes = [int(numbers.starts[2 * p + side + 1] - numbers.starts[2 * p + side]) for p in range(numbers.num_parts)]
        self._type_starts = torch.tensor([0, *sizes]).cumsum(0)
        self._shards: list[Tensor | Piece] = []
        for piece in client.owners.own(side, client.rank):
            if piece.part in client.local_parts:
                self._shards.append(self._tensor.local_partition[piece.begin : piece.end])
            else:
                self._shards.append(piece)
        self._ends = torch.tensor([len(shard) for shard in self._shards], dtype=torch.int64).cumsum(0)

    def _make_on(self, part: int, policy: Any, name: str, dim: int) -> None:
        from dgl.distributed import kvstore, rpc

        numbers = self._client.numbers
        rows = int(numbers.starts[2 * part + self.side + 1] - numbers.starts[2 * part + self.side])
        full_name = str(policy.get_data_name(f"{name}_{rpc.get_group_id()}"))  # as DistTensor names it
        request = kvstore.InitDataRequest(full_name, (rows, dim), "float32", policy.policy_str, zeros)
        with self._client.lock:
            rpc.send_request(part, request)
            rpc.recv_response(int(REPLY_SECONDS * 1000))

    def __len__(self) -> int:
        """Rows that this worker owns."""
        return int(self._ends[-1]) if len(self._shards) else 0

    def read(self, places: Tensor) -> Tensor:
        """Own rows, float32 [n, dim].

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
        """Sets own rows; places as in `read`."""
        if len(self._shards) == 1 and isinstance(self._shards[0], Tensor):
            self._shards[0].index_copy_(0, places, rows)
            return
        for shard, chosen, within in self._split(places):
            if isinstance(shard, Tensor):
                shard.index_copy_(0, within, rows[chosen])
            else:
                with self._client.lock:
                    numbers = self._type_starts[shard.part] + shard.begin + within
                    self._tensor[numbers] = rows[chosen]  # returns before the server has them
                    self._tensor[numbers[:1]]  # answered after them: then a barrier makes them visible to all

    def pull(self, ids: Tensor) -> Tensor:
        """Rows of any nodes by dataset index, float32 [n, dim]."""
        if not ids.numel():
            return torch.zeros(0, self.dim)
        numbers = self._client.numbers
        parts, local = numbers.locate(self.side, ids)
        places = self._type_starts[parts] + local
        if self.side:
            places -= (numbers.starts[1::2] - numbers.starts[:-1:2])[parts]
        with self._client.lock:
            return self._tensor[places]

    def _split(self, places: Tensor) -> list[tuple]:
        which = torch.searchsorted(self._ends, places, right=True)
        found = []
        for number, shard in enumerate(self._shards):
            chosen = (which == number).nonzero().squeeze(1)
            if chosen.numel():
                found.append((shard, chosen, places[chosen] - (self._ends[number] - len(shard))))
        return found

    def _remote_read(self, piece: Piece, within: Tensor) -> Tensor:
        with self._client.lock:
            return self._tensor[self._type_starts[piece.part] + piece.begin + within]


def zeros(shape: tuple, dtype: torch.dtype) -> Tensor:
    """Rows of a new table; the servers import it by name."""
    return torch.zeros(shape, dtype=dtype)
