"""Holds the learners of reduction layers and prompt: DeepSpeed's, which may be sharded, and a plain one for a single process."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from ...config import ClusterConfig
from ...worker import Worker
from ..learners import Learner
from .plain import PlainReduction


class Reduction(Learner, Protocol):
    """Describes a learner that also computes its module, and backpropagates the loss that its output enters."""

    def __call__(self, *args: object) -> dict[str, Tensor]:
        """Computes the module's forward pass."""
        ...

    def backward(self, loss: Tensor, is_last: bool = True) -> None:
        """Backpropagates the loss of a batch or micro-batch; all other leaves of the loss's graph get their gradients too.

        Args:
            loss: A scalar.
            is_last: Whether this is the step's last micro-batch.
        """


def build_learner(
    module: nn.Module, learning_rate: float, dtype: torch.dtype, cluster: ClusterConfig, worker: Worker, example: Callable[[], tuple]
) -> Reduction:
    """Builds the learner of reduction layers and prompt: DeepSpeed's where Ray runs the workers, torch's with cluster.executor=local.

    Args:
        module: Reduction layers and prompt on the worker's device, float32.
        learning_rate: Adam's step size.
        dtype: The dtype that the module computes in; other than float32 only with ZeRO stage 1 to 3.
        cluster: Executor, ZeRO stage, offloading and micro-batches.
        worker: This worker.
        example: Returns the arguments of one forward pass.
    """
    if cluster.executor == "local":
        return PlainReduction(module, learning_rate, worker)
    from .deepspeed import DeepSpeedReduction

    return DeepSpeedReduction(module, learning_rate, dtype, cluster, worker, example())
