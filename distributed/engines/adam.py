"""Makes torch's Adam with its fused kernel, for every weight that a worker steps itself."""

from typing import Any

import torch


def fused_adam(groups: list[dict[str, Any]]) -> torch.optim.Adam:
    """Makes torch's Adam (Kingma and Ba 2015), whose kernel reads weights, gradients and moments once.

    The kernel that torch takes by itself on a CPU reads them in eight passes with temporaries: nine times the time on tables of 14 million
    numbers (benchmarks/README.md).

    Args:
        groups: Parameters ("params") with their step size ("lr"), all of floating point.
    """
    optimizer = torch.optim.Adam(groups, fused=True)
    optimizer.register_step_pre_hook(_match_strides)
    return optimizer


def _match_strides(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    """Copies gradients whose strides are not their parameter's, as may be along dimensions of one element: the kernel refuses them."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
