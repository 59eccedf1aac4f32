"""Exchanges rows between workers: ids go to the owners by all-to-all, rows come back, and gradients return to the owners.

Ids are exchanged in the background while batches are made, in a separate process group. All workers make their batches in the same order,
so the collective calls of their background threads match in this group, as those of their main threads match in the default group.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ....core.autograd import Context, Gradients
from ....graph_store.ownership import Owners
from ...worker import ProcessGroup, Worker


@dataclass
class Traffic:
    """Counts the bytes that this worker sends to others.

    Attributes:
        sent: Bytes so far.
    """

    sent: int = 0

    def count(self, rows: Tensor, counts: list[int], rank: int) -> None:
        """Adds the bytes of the rows that go to other workers.

        Args:
            rows: Rows in the form in which they are sent.
            counts: The number of rows that go to each rank.
            rank: This worker's rank, whose rows stay here and do not count.
        """
        others = sum(counts) - counts[rank]
        self.sent += others * rows[:1].numel() * rows.element_size() if rows.numel() else 0


class RowExchange:
    """Requests rows of some users or items from their owners; building it is a collective call in the group.

    Attributes:
        served: Distinct places among this worker's own rows that any worker has asked for, int64.
    """

    def __init__(self, worker: Worker, owners: Owners, side: int, ids: Tensor, traffic: Traffic, group: ProcessGroup | None = None) -> None:
        """Sends the ids to their owners.

        Args:
            worker: This worker.
            owners: Tells which worker owns a row.
            side: The side of `ids`, USERS or ITEMS.
            ids: int64 [n], distinct dataset indices.
            traffic: Counts the bytes that are sent.
            group: The process group in which ids are exchanged; the default group if None.
        """
        self._worker, self._traffic = worker, traffic
        ranks, places = owners.find(side, ids)
        if worker.world_size == 1:
            self.served = places
            return
        self._order = torch.argsort(ranks, stable=True)  # the order in which the owners answer
        self._back = torch.empty_like(self._order)
        self._back[self._order] = torch.arange(self._order.numel())
        self._wanted = torch.bincount(ranks, minlength=worker.world_size).tolist()
        self._asked = _swap_counts(self._wanted, group)
        traffic.count(places, self._wanted, worker.rank)
        received, self._sources = _swap(places[self._order], self._wanted, self._asked, group).sort(stable=True)
        self.served, counts = torch.unique_consecutive(received, return_counts=True)
        self._pointers = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self._answered = torch.empty_like(received)  # for every request the row of `served` that answers it
        self._answered[self._sources] = torch.repeat_interleave(counts)

    def gather(self, rows: Tensor) -> Tensor:
        """Returns the requested rows; collective and differentiable.

        The backward pass sums, at a row's owner, the gradients of all workers that asked for the row.

        Args:
            rows: [len(served), d], the rows that this worker serves.

        Returns:
            [n, d], in the order of the requested ids.
        """
        return rows if self._worker.world_size == 1 else _Gather.apply(rows, self)

    def answer(self, rows: Tensor) -> Tensor:
        """Sends served rows to the workers that asked for them; returns the rows that this worker asked for."""
        sent = rows.index_select(0, self._answered.to(rows.device))
        self._traffic.count(sent, self._asked, self._worker.rank)
        return _swap(sent, self._asked, self._wanted).index_select(0, self._back.to(rows.device))

    def answer_back(self, grad: Tensor) -> Tensor:
        """Sends the gradients of requested rows to the rows' owners; returns the summed gradients of the served rows."""
        sent = grad.index_select(0, self._order.to(grad.device))
        self._traffic.count(sent, self._wanted, self._worker.rank)
        received = _swap(sent, self._wanted, self._asked)
        # A sum over runs is several times faster than scattered additions.
        sources, pointers = self._sources.to(grad.device), self._pointers.to(grad.device)
        return F.embedding_bag(sources, received, pointers, mode="sum", include_last_offset=True)


def _swap_counts(counts: list[int], group: ProcessGroup | None) -> list[int]:
    """Tells every worker how many rows this one will send to it; returns how many rows each worker will send to this one."""
    received = torch.zeros(len(counts), dtype=torch.int64)
    dist.all_to_all_single(received, torch.tensor(counts), group=group)
    return received.tolist()


def _swap(rows: Tensor, send: list[int], receive: list[int], group: ProcessGroup | None = None) -> Tensor:
    out = rows.new_empty(sum(receive), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), receive, send, group=group)
    return out


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, rows: Tensor, exchange: RowExchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.answer(rows)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Gradients:
        return ctx.exchange.answer_back(grad), None
