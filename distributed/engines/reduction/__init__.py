"""Reduction layers and prompt with their optimizer: sharded by DeepSpeed on a cluster, plain in a process of its own."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from ...config import ClusterConfig
from ...worker import Worker
from ..learners import Learner
from .plain import PlainReduction


class Reduction(Learner, Protocol):
    """A learner that is also called, and that backpropagates whatever its output went into."""

    def __call__(self, *args: object) -> dict[str, Tensor]:
        """The module's forward pass."""
        ...

    def backward(self, loss: Tensor, is_last: bool = True) -> None:
        """Backpropagates the loss of a batch or micro-batch; other leaves of its graph get their gradients too."""


def build_learner(
    module: nn.Module, learning_rate: float, dtype: torch.dtype, cluster: ClusterConfig, worker: Worker, example: Callable[[], tuple]
) -> Reduction:
    """Returns the learner of a reduction: DeepSpeed's where Ray runs the workers, torch's own with cluster.executor=local.

    Args:
        module: On the worker's device, float32.
        learning_rate: Adam's step size.
        dtype: What the module computes in; other than float32 only under ZeRO 1 to 3.
        cluster: Executor, ZeRO stage, offloading, micro-batches.
        worker: This worker.
        example: Makes the arguments of one forward pass.
    """
    if cluster.executor == "local":
        return PlainReduction(module, learning_rate, worker)
    from .deepspeed import DeepSpeedReduction

    return DeepSpeedReduction(module, learning_rate, dtype, cluster, worker, example())
