"""Describes a worker, and offers the collectives of the training loops; it needs torch.distributed alone, whatever started the worker."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core.autograd import Context, Gradients

ProcessGroup: TypeAlias = dist.ProcessGroup
Shared = TypeVar("Shared")


@dataclass(frozen=True)
class Worker:
    """Describes this worker; with one worker every collective does nothing.

    Attributes:
        rank: This worker's number, from 0.
        world_size: The number of workers.
        device: Where this worker computes.
        nodes: An id of every rank's host.
    """

    rank: int
    world_size: int
    device: torch.device
    nodes: tuple[str, ...]

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def new_group(self) -> ProcessGroup | None:
        """Returns a further process group over all workers, on the CPU, for use by another thread; None with one worker. Collective."""
        return dist.new_group(backend="gloo") if self.world_size > 1 else None

    def share(self, value: Shared) -> Shared:
        """Returns rank 0's value on every rank; collective."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def gather(self, value: dict) -> dict:
        """Returns the union of all workers' dictionaries on every rank; collective."""
        if self.world_size == 1:
            return value
        parts: list[dict] = [{}] * self.world_size
        dist.all_gather_object(parts, value)
        return {key: entry for part in parts for key, entry in part.items()}

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sums each tensor over the workers, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                moved = tensor.to(self.device)
                dist.all_reduce(moved)
                tensor.copy_(moved)

    def even_chunks(self, counts: list[int], rows: int = 16_384) -> list[list[Tensor]]:
        """Splits the places 0 to count - 1 of each count into runs of `rows`; collective.

        Every worker gets the same number of runs for every count, as many as the largest count of all workers needs; the last runs may be
        empty.

        Returns:
            For each count its runs, int64.
        """
        longest = torch.tensor([max(counts)])
        if self.world_size > 1:
            dist.all_reduce(longest, dist.ReduceOp.MAX)
        starts = range(0, max(1, int(longest)), rows)
        return [[torch.arange(min(start, count), min(start + rows, count)) for start in starts] for count in counts]

    def average_gradients(self, module: nn.Module) -> None:
        """Averages the gradients of a replicated module over the workers, in one message."""
        if self.world_size == 1:
            return
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        if not grads:
            return
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.world_size
        for grad, piece in zip(grads, flat.split([g.numel() for g in grads])):
            grad.copy_(piece.view_as(grad))

    def gather_rows(self, rows: Tensor, sizes: list[int]) -> Tensor:
        """Returns all workers' rows in rank order, [sum(sizes), d]; collective and differentiable.

        The backward pass sums all workers' gradients of a row at the worker that gave it. The learners then average gradients over the
        workers, which makes this sum the gradient of the mean of the workers' losses.

        Args:
            rows: float [sizes[rank], d], this worker's rows.
            sizes: The number of rows of every rank.
        """
        if self.world_size == 1:
            return rows
        return _GatherRows.apply(rows, sizes, self.rank)

    def share_of_distinct(self, values: Tensor) -> tuple[Tensor, int]:
        """Shares the distinct values of all workers among them: a worker takes those of its values that no lower rank has; collective.

        Args:
            values: This worker's values, int64 of any shape.

        Returns:
            This worker's share, int64 [n], ascending; and the number of distinct values over all workers.
        """
        distinct = torch.unique(values)
        if self.world_size == 1:
            return distinct, distinct.numel()
        gathered: list[Tensor] = [distinct] * self.world_size
        dist.all_gather_object(gathered, distinct.cpu())
        of_lower_ranks = torch.cat([gathered[0].new_zeros(0), *gathered[: self.rank]]).to(distinct.device)
        return distinct[~torch.isin(distinct, of_lower_ranks)], torch.unique(torch.cat(gathered)).numel()

    def check_finite(self, loss: Tensor, where: str) -> float:
        """Returns the loss averaged over the workers; collective.

        Args:
            loss: This worker's loss, a scalar.
            where: Names the epoch and step in the message.

        Raises:
            FloatingPointError: the loss of any worker is not finite; every worker raises it.
        """
        value = loss.detach().clone().double()[None]
        self.sum_([value])
        mean = float(value) / self.world_size
        if not torch.isfinite(value).all():
            raise FloatingPointError(
                f"the loss is {mean} at {where}: lower the learning rate, or look for extreme feature values; the last checkpoint is kept"
            )
        return mean


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, rows: Tensor, sizes: list[int], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        padded = rows.new_zeros(max(sizes), rows.shape[1])  # gloo gathers tensors of equal shape only
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes)])

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Gradients:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        start = sum(ctx.sizes[: ctx.rank])
        return total[start : start + ctx.sizes[ctx.rank]], None, None


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch's threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
