"""Trains reduction layers and prompt with torch's Adam, for a worker that holds them whole and has no DeepSpeed."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ...worker import Worker
from ..learners import AdamLearner

_MOMENTS = ("exp_avg", "exp_avg_sq")
LARGEST_NORM = 1.0  # the largest length of the gradient of reduction layers and prompt together; a longer one is scaled down to it
_EPSILON = 1e-6  # added to the length before the division, as DeepSpeed does


class PlainReduction(AdamLearner):
    """Computes and saves the same numbers as `DeepSpeedReduction` at ZeRO stage 0, to the last bit.

    Args:
        module: Reduction layers and prompt on the worker's device, float32.
        learning_rate: Adam's step size.
        worker: This worker.
    """

    def __init__(self, module: nn.Module, learning_rate: float, worker: Worker) -> None:
        super().__init__(module, [([p for p in module.parameters() if p.requires_grad], learning_rate)], worker, "reduction.")

    def __call__(self, *args: object) -> dict[str, Tensor]:
        """Computes the module's forward pass."""
        out: dict[str, Tensor] = self.module(*args)
        return out

    def backward(self, loss: Tensor, is_last: bool = True) -> None:
        """Backpropagates the loss; gradients add up until the step.

        Args:
            loss: The loss of a batch or of a micro-batch.
            is_last: Not used: torch sums the gradients of micro-batches by itself.
        """
        loss.backward()

    def step(self) -> None:
        """Averages the gradients over the workers, scales them down to `LARGEST_NORM`, takes Adam's step and clears the gradients."""
        self.worker.average_gradients(self.module)
        assert self.optimizer is not None
        grads = [p.grad for p in self.module.parameters() if p.grad is not None]
        if grads:
            norm = torch.stack([grad.norm(2.0) for grad in grads]).pow(2.0).sum().pow(0.5)
            share = LARGEST_NORM / (norm + _EPSILON)
            if share < 1:
                for grad in grads:
                    grad.mul_(share)
        self.optimizer.step()
        self.zero_grad()

    def stream_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yields weights, moments and step count by the names that `DeepSpeedReduction` gives them."""
        assert self.optimizer is not None
        steps = torch.tensor(0.0)
        for name, parameter in self.module.named_parameters():
            yield f"weight.{name}", parameter.detach().cpu()
            state = self.optimizer.state.get(parameter, {})
            for moment in _MOMENTS if parameter.requires_grad else ():
                yield f"{moment}.{name}", state.get(moment, torch.zeros_like(parameter)).cpu()
            steps = torch.as_tensor(state.get("step", steps)).float()
        yield "step", steps

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        assert self.optimizer is not None
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(tensors[f"weight.{name}"])
                if parameter.requires_grad:
                    moments = {moment: tensors[f"{moment}.{name}"].clone().to(parameter.device) for moment in _MOMENTS}
                    self.optimizer.state[parameter] = {"step": tensors["step"].to(parameter.device, torch.float32, copy=True), **moments}
