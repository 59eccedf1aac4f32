"""Rows that other workers own: ids go out by all-to-all, rows come back, and gradients travel the same way back to the owners.

Ids are exchanged in the background, with the batches, through a process group of their own: all workers make the same batches in the same
order, so their background threads meet there as their main threads meet in the default group.
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
    """Bytes that this worker has sent to others."""

    sent: int = 0

    def count(self, rows: Tensor, counts: list[int], rank: int) -> None:
        """Counts all rows but those that stay here."""
        others = sum(counts) - counts[rank]
        self.sent += others * rows[:1].numel() * rows.element_size() if rows.numel() else 0


class RowExchange:
    """One request for rows of some users or items, to whoever owns them; building it is a collective call of the group.

    Attributes:
        served: Places among this worker's own rows that any worker asked for, int64, distinct.
    """

    def __init__(self, worker: Worker, owners: Owners, side: int, ids: Tensor, traffic: Traffic, group: ProcessGroup | None = None) -> None:
        """Args: ids: int64 [n], distinct dataset indices; group: for the ids, the default one where not given."""
        self._worker, self._traffic = worker, traffic
        ranks, places = owners.find(side, ids)
        if worker.world_size == 1:
            self.served = places
            return
        self._order = torch.argsort(ranks, stable=True)  # as the owners answer
        self._back = torch.empty_like(self._order)
        self._back[self._order] = torch.arange(self._order.numel())
        self._wanted = torch.bincount(ranks, minlength=worker.world_size).tolist()
        self._asked = _swap_counts(self._wanted, group)
        traffic.count(places, self._wanted, worker.rank)
        received, self._sources = _swap(places[self._order], self._wanted, self._asked, group).sort(stable=True)
        self.served, counts = torch.unique_consecutive(received, return_counts=True)
        self._pointers = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self._answered = torch.empty_like(received)  # the served row of each that was asked for
        self._answered[self._sources] = torch.repeat_interleave(counts)

    def gather(self, rows: Tensor) -> Tensor:
        """Returns the requested rows, from the served ones; collective and differentiable.

        The backward pass sums the gradients of all who asked for a row at its owner.

        Args:
            rows: [len(served), d], this worker's answer.

        Returns:
            [n, d] in the order of the ids asked for.
        """
        return rows if self._worker.world_size == 1 else _Gather.apply(rows, self)

    def answer(self, rows: Tensor) -> Tensor:
        """Sends served rows to those who asked for them; the rows that this worker asked for."""
        sent = rows.index_select(0, self._answered.to(rows.device))
        self._traffic.count(sent, self._asked, self._worker.rank)
        return _swap(sent, self._asked, self._wanted).index_select(0, self._back.to(rows.device))

    def answer_back(self, grad: Tensor) -> Tensor:
        """Sends the gradients of asked rows to their owners; the sums for the served rows."""
        sent = grad.index_select(0, self._order.to(grad.device))
        self._traffic.count(sent, self._wanted, self._worker.rank)
        received = _swap(sent, self._wanted, self._asked)
        # A sum over runs, several times faster than scattered additions.
        sources, pointers = self._sources.to(grad.device), self._pointers.to(grad.device)
        return F.embedding_bag(sources, received, pointers, mode="sum", include_last_offset=True)


def _swap_counts(counts: list[int], group: ProcessGroup | None) -> list[int]:
    """Returns how many rows each worker sends to this one."""
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
