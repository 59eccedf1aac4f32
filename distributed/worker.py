"""What a Ray Train worker knows about itself, and the collectives that the training loops use."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Worker:
    """Rank, world size and device of this worker; every collective is a no-op with one worker."""

    rank: int
    world_size: int
    device: torch.device
    nodes: tuple[str, ...]  # Ray node id of every rank

    @staticmethod
    def current(use_gpu: bool, threads: int) -> "Worker":
        """This process's worker inside a Ray Train loop; sets torch's thread count (Ray sets OMP_NUM_THREADS=1)."""
        import ray.train
        import ray.train.torch

        torch.set_num_threads(threads)
        context = ray.train.get_context()
        rank, world_size = context.get_world_rank(), context.get_world_size()
        device = ray.train.torch.get_device() if use_gpu else torch.device("cpu")
        node = ray.get_runtime_context().get_node_id()
        nodes: list[Any] = [node]
        if world_size > 1:
            nodes = [None] * world_size
            dist.all_gather_object(nodes, node)
        return Worker(rank, world_size, device, tuple(nodes))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def new_group(self) -> Any:
        """A further process group over all workers, on the CPU, for a thread of its own; None with one worker. Collective."""
        return dist.new_group(backend="gloo") if self.world_size > 1 else None

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def gather(self, value: dict) -> dict:
        """All workers' dictionaries as one, on every rank."""
        if self.world_size == 1:
            return value
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return {key: entry for part in found for key, entry in part.items()}

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
        """All workers' rows in rank order [sum(sizes), d], with gradients.

        The backward pass sums every worker's gradient for the owner's rows: with losses averaged over the workers and gradients averaged
        by the optimizer, that is the gradient of the mean loss.
        """
        if self.world_size == 1:
            return rows
        return _GatherRows.apply(rows, sizes, self.rank)

    def union(self, values: Tensor) -> Tensor:
        """The sorted unique values over all workers, int64."""
        if self.world_size == 1:
            return torch.unique(values)
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, values.cpu())
        return torch.unique(torch.cat(gathered)).to(values.device)

    def first_to_name(self, values: Tensor) -> tuple[Tensor, int]:
        """This worker's share of the unique values over all workers: those that no lower rank has; and how many there are in all."""
        own = torch.unique(values)
        if self.world_size == 1:
            return own, own.numel()
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, own.cpu())
        lower = torch.cat([own.new_zeros(0), *gathered[: self.rank]])
        return own[~torch.isin(own, lower)], torch.unique(torch.cat(gathered)).numel()

    def check_finite(self, loss: Tensor, where: str) -> float:
        """The loss averaged over the workers; raises FloatingPointError on every worker where it is not finite."""
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
    def forward(ctx, rows: Tensor, sizes: list[int], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        padded = rows.new_zeros(max(sizes), rows.shape[1])  # gloo gathers equal shapes only
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes)])

    @staticmethod
    def backward(ctx, grad: Tensor):
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        start = sum(ctx.sizes[: ctx.rank])
        return total[start : start + ctx.sizes[ctx.rank]], None, None
