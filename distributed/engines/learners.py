"""Defines learners: weights that every worker has, with their optimizer, which a trainer steps, keeps and saves."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from ..worker import Worker
from .adam import fused_adam

Group = tuple[list[nn.Parameter], float]


class Learner(Protocol):
    """Describes replicated weights with their optimizer; all calls are collective.

    Attributes:
        state_prefix: Prefix of the names of the learner's tensors in a checkpoint's state.
        weight_prefix: Prefix of the names of the learner's weights where these are stored without the state, as the best weights are.
    """

    state_prefix: str
    weight_prefix: str

    def scale_rates(self, decay: float) -> None:
        """Sets every step size to `decay` times its setting."""

    def zero_grad(self) -> None:
        """Clears the gradients of the last step."""

    def step(self) -> None:
        """Averages the gradients over the workers, and takes the optimizer's step."""

    def weights(self) -> dict[str, Tensor]:
        """Returns copies of the weights by name, float32, on the CPU."""

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Restores the weights that `weights` returned; the optimizer's state stays."""

    def stream_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yields weights and the optimizer's state by name, one whole tensor at a time."""

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restores the tensors that `stream_state` yielded, at any world size."""


class AdamLearner:
    """Steps a module's weights with torch's Adam.

    Args:
        module: The weights, on the worker's device.
        groups: Lists of parameters with their step sizes; every parameter that is learnt is in one of them.
        worker: This worker.
        prefix: The `state_prefix`.
        weight_prefix: The `weight_prefix`; `prefix` by default.
    """

    def __init__(self, module: nn.Module, groups: list[Group], worker: Worker, prefix: str, weight_prefix: str | None = None) -> None:
        self.module, self.worker, self.state_prefix = module, worker, prefix
        self.weight_prefix = prefix if weight_prefix is None else weight_prefix
        groups = [(parameters, rate) for parameters, rate in groups if parameters]
        self.rates = [rate for _, rate in groups]
        self.optimizer = fused_adam([{"params": parameters, "lr": rate} for parameters, rate in groups]) if groups else None

    def scale_rates(self, decay: float) -> None:
        for group, rate in zip(self.optimizer.param_groups if self.optimizer else (), self.rates):
            group["lr"] = rate * decay

    def zero_grad(self) -> None:
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        self.worker.average_gradients(self.module)
        if self.optimizer is not None:
            self.optimizer.step()

    def weights(self) -> dict[str, Tensor]:
        return {name: t.detach().cpu().clone() for name, t in self.module.state_dict().items()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.module.load_state_dict({name: weights[name] for name in self.module.state_dict()})

    def stream_state(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.module.named_parameters():
            yield f"weight.{name}", parameter
            for key, value in (self.optimizer.state.get(parameter, {}) if self.optimizer else {}).items():
                yield f"{key}.{name}", value

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(tensors[f"weight.{name}"])
                keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors]
                if keys and self.optimizer is not None:
                    self.optimizer.state[parameter] = {key: tensors[f"{key}.{name}"].clone().to(parameter.device) for key in keys}


def whole_state_stream(learners: list[Learner]) -> Iterator[tuple[str, Tensor]]:
    """Yields the state of several learners by prefixed name, one whole tensor at a time; collective: every worker has to take all."""
    for learner in learners:
        for name, tensor in learner.stream_state():
            yield learner.state_prefix + name, tensor


def whole_weights(learners: list[Learner]) -> dict[str, Tensor]:
    """Returns the weights of several learners by prefixed name."""
    return {learner.weight_prefix + name: t for learner in learners for name, t in learner.weights().items()}


def restore_state(learners: list[Learner], tensors: dict[str, Tensor]) -> None:
    """Restores the tensors that `whole_state_stream` yielded."""
    for learner in learners:
        learner.load_state(take_prefix(learner.state_prefix, tensors))


def restore_weights(learners: list[Learner], tensors: dict[str, Tensor]) -> None:
    """Restores the weights that `whole_weights` returned."""
    for learner in learners:
        learner.load_weights(take_prefix(learner.weight_prefix, tensors))


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors with `prefix` before every name."""
    return {prefix + name: t for name, t in tensors.items()}


def take_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors whose names start with `prefix`, by their names without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
