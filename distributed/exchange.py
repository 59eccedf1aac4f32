"""Rows that other workers own: ids go out by all-to-all, rows come back, and gradients travel the same way back to the owners.

Ids are exchanged in the background, with the batches, through a process group of their own: all workers make the same batches in the same
order, so their background threads meet there as their main threads meet in the default group.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..graph_store.embeddings import Owners
from .worker import Worker


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

    def __init__(self, worker: Worker, owners: Owners, side: int, ids: Tensor, traffic: Traffic, group: Any = None) -> None:
        """Args: ids: int64 [n], distinct dataset indices; group: for the ids, the default one where not given."""
        self._worker, self._traffic = worker, traffic
        ranks, places = owners.find(side, ids)
        if worker.world_size == 1:
            self.served = places
            return
        self._order = torch.argsort(ranks, stable=True)  # as the owners answer
        self._wanted = torch.bincount(ranks, minlength=worker.world_size).tolist()
        self._asked = _swap_counts(self._wanted, group)
        traffic.count(places, self._wanted, worker.rank)
        received = _swap(places[self._order], self._wanted, self._asked, group)
        self.served, self._inverse = torch.unique(received, return_inverse=True)

    def gather(self, rows: Tensor) -> Tensor:
        """The requested rows, from the served ones; collective and differentiable.

        The backward pass sums the gradients of all who asked for a row at its owner.

        Args:
            rows: [len(served), d], this worker's answer.

        Returns:
            [n, d] in the order of the ids asked for.
        """
        if self._worker.world_size == 1:
            return rows
        answers = F.embedding(self._inverse.to(rows.device), rows)
        return _SwapRows.apply(answers, self._asked, self._wanted, self._order.to(rows.device), self._worker, self._traffic)


def _swap_counts(counts: list[int], group: Any) -> list[int]:
    """How many rows each worker sends to this one."""
    received = torch.zeros(len(counts), dtype=torch.int64)
    dist.all_to_all_single(received, torch.tensor(counts), group=group)
    return received.tolist()


def _swap(rows: Tensor, send: list[int], receive: list[int], group: Any = None) -> Tensor:
    out = rows.new_empty(sum(receive), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), receive, send, group=group)
    return out


class _SwapRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, send: list[int], receive: list[int], order: Tensor, worker: Worker, traffic: Traffic) -> Tensor:
        ctx.counts, ctx.order, ctx.worker, ctx.traffic = (send, receive), order, worker, traffic
        traffic.count(rows, send, worker.rank)
        out = rows.new_empty(order.numel(), rows.shape[1])
        return out.index_copy_(0, order, _swap(rows, send, receive))

    @staticmethod
    def backward(ctx, grad: Tensor):
        send, receive = ctx.counts
        ctx.traffic.count(grad, receive, ctx.worker.rank)
        return _swap(grad.index_select(0, ctx.order), receive, send), None, None, None, None, None
