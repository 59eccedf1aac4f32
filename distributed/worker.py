"""What a worker knows about itself, and the collectives that the training loops use; torch.distributed alone, whoever started it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core.autograd import Context, Gradients

ProcessGroup: TypeAlias = dist.ProcessGroup


@dataclass(frozen=True)
class Worker:
    """Rank, world size and device of this worker; every collective is a no-op with one worker."""

    rank: int
    world_size: int
    device: torch.device
    nodes: tuple[str, ...]  # the host of every rank, by an id

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def new_group(self) -> ProcessGroup | None:
        """Returns a further process group over all workers, on the CPU, for a thread of its own; None with one worker. Collective."""
        return dist.new_group(backend="gloo") if self.world_size > 1 else None

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def gather(self, value: dict) -> dict:
        """Returns all workers' dictionaries as one, on every rank."""
        if self.world_size == 1:
            return value
        parts: list[Any] = [None] * self.world_size
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
        """For each count the places 0..count in runs, as many runs on every worker and for every count; the last ones may be empty."""
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
        """Returns all workers' rows in rank order [sum(sizes), d], with gradients.

        The backward pass sums every worker's gradient for the owner's rows: with losses averaged over the workers and gradients averaged
        by the optimizer, that is the gradient of the mean loss.
        """
        if self.world_size == 1:
            return rows
        return _GatherRows.apply(rows, sizes, self.rank)

    def share_of_distinct(self, values: Tensor) -> tuple[Tensor, int]:
        """Returns this worker's share of the distinct values over all workers, those that no lower rank has, and how many there are in all.

        Args:
            values: int64, any shape.

        Returns:
            int64 [n], ascending, and the number.
        """
        own = torch.unique(values)
        if self.world_size == 1:
            return own, own.numel()
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, own.cpu())
        lower = torch.cat([gathered[0].new_zeros(0), *gathered[: self.rank]]).to(own.device)
        return own[~torch.isin(own, lower)], torch.unique(torch.cat(gathered)).numel()

    def check_finite(self, loss: Tensor, where: str) -> float:
        """Returns the loss averaged over the workers; raises FloatingPointError on every worker where it is not finite."""
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
        padded = rows.new_zeros(max(sizes), rows.shape[1])  # gloo gathers equal shapes only
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
