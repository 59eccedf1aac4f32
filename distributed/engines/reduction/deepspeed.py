"""Trains reduction layers and prompt under DeepSpeed's ZeRO."""

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ....core.storage import JsonObject
from ...config import ClusterConfig
from ...worker import Worker
from ..adam import fused_adam
from .extensions import prepare_extensions
from .plain import LARGEST_NORM

_MOMENTS = ("exp_avg", "exp_avg_sq")
BUCKET = 1 << 24  # elements that are gathered, reduced or stepped together; DeepSpeed's own 5e8 is a buffer of 2 GB


class DeepSpeedReduction:
    """Steps a module in a DeepSpeed engine, with Adam under a ZeRO stage.

    State is kept as whole named float32 tensors (weights, Adam's two moments and its step count), so a checkpoint that was written at one
    stage and world size, offloaded or not and in any dtype, resumes at any other.
    """

    def __init__(
        self, module: nn.Module, learning_rate: float, dtype: torch.dtype, cluster: ClusterConfig, worker: Worker, example: tuple
    ) -> None:
        """Builds the engine.

        Args:
            module: The module on the worker's device, float32 and equal on every worker; it returns float32 whatever the dtype of its
                weights.
            learning_rate: Adam's step size.
            dtype: The dtype of the weights that the module computes with: float32, or bfloat16 at the stages 1 to 3.
            cluster: ZeRO stage, offloading and micro-batches.
            worker: This worker.
            example: Arguments of one forward pass, after which a step with zero gradients creates Adam's state.
        """
        prepare_extensions()
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.stage, self.rank, self.world_size = cluster.zero_stage, worker.rank, worker.world_size
        parameters = [p for p in module.parameters() if p.requires_grad]
        # torch's fused Adam makes no temporaries; DeepSpeed's own Adam for CPUs would have to be compiled first
        adam = fused_adam([{"params": parameters, "lr": learning_rate}])
        with contextlib.redirect_stdout(io.StringIO()):
            self.engine, *_ = deepspeed.initialize(
                model=module,
                model_parameters=parameters,
                config=_deepspeed_config(cluster, dtype),
                dist_init_required=False,
                optimizer=adam,
            )
        self.state_prefix = self.weight_prefix = "reduction."
        self._rate = learning_rate
        self._prime(example)

    def _prime(self, example: tuple) -> None:
        self.scale_rates(0.0)
        out = self.engine(*example)
        self.backward(torch.stack([value.sum() for value in out.values()]).sum() * 0.0)
        self.step()
        self.scale_rates(1.0)
        self._set_step(0)

    @property
    def _adam(self) -> torch.optim.Optimizer:
        optimizer: Any = self.engine.optimizer
        return optimizer if isinstance(optimizer, torch.optim.Adam) else optimizer.optimizer

    def scale_rates(self, decay: float) -> None:
        """Sets Adam's step size to `decay` times its setting."""
        for group in self._adam.param_groups:
            group["lr"] = self._rate * decay

    def zero_grad(self) -> None:
        """Does nothing: a step clears the gradients."""

    def __call__(self, *args: object) -> dict[str, Tensor]:
        return self.engine(*args)

    def backward(self, loss: Tensor, is_last: bool = True) -> None:
        """Backpropagates the loss; all other leaves of the loss's graph get their gradients too.

        Args:
            loss: The loss of a batch or of a micro-batch; a step uses the sum of its micro-batches' gradients.
            is_last: Whether a step follows; otherwise the gradients are kept for the next micro-batch.
        """
        self.engine.set_gradient_accumulation_boundary(is_last)
        self.engine.backward(loss, scale_wrt_gas=False)
        if not is_last:
            self.engine.step()  # only counts the micro-batch

    def step(self) -> None:
        """Averages gradients over the workers, steps and clears them."""
        self.engine.step()

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.engine.module.named_parameters() if p.requires_grad]

    def _set_step(self, count: int) -> None:
        for state in self._adam.state.values():
            if "step" in state:
                state["step"] = torch.full_like(state["step"], float(count)) if isinstance(state["step"], Tensor) else count

    def weights(self) -> dict[str, Tensor]:
        """Returns whole float32 weights by name, on the CPU; Adam's masters where the module computes with rounded weights; collective."""
        return {name: self._weight(parameter) for name, parameter in self.engine.module.named_parameters()}

    def _weight(self, parameter: nn.Parameter) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        with self._whole(parameter):
            masters = self.stage and parameter.requires_grad
            value = safe_get_full_fp32_param(parameter) if masters else parameter
            return value.detach().to("cpu", torch.float32, copy=True).reshape(parameter.shape)

    def _whole(self, parameter: nn.Parameter, modifier_rank: int | None = None) -> Any:
        """Returns a context in which one parameter is whole; a worker's memory may not hold all parameters whole at once."""
        import deepspeed

        return deepspeed.zero.GatheredParameters([parameter], modifier_rank=modifier_rank, enabled=self.stage == 3)

    def stream_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yields weights, moments and step count as whole float32 tensors on the CPU, one at a time.

        A worker's memory may not hold all of them (12 bytes for each parameter). A collective call, in which every worker has to take all
        tensors.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        for name, parameter in self.engine.module.named_parameters():
            weight = self._weight(parameter)
            shape = weight.shape
            yield f"weight.{name}", weight
            del weight
            for moment in _MOMENTS if parameter.requires_grad else ():
                value = self._adam.state[parameter][moment] if self.stage == 0 else safe_get_full_optimizer_state(parameter, moment)
                yield f"{moment}.{name}", value.detach().to("cpu", torch.float32, copy=True).reshape(shape)
        steps = [state["step"] for state in self._adam.state.values() if "step" in state]
        yield "step", torch.tensor(float(steps[0]) if steps else 0.0)

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Restores what `weights` returned; the optimizer's state stays."""
        for name, parameter in self._named():
            with self._whole(parameter, modifier_rank=0), torch.no_grad():
                parameter.copy_(weights[name])
            if self.stage:
                self._set_sharded(parameter, weights[name], None)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restores the tensors that `stream_state` yielded, at any stage and world size."""
        self.load_weights({name.removeprefix("weight."): value for name, value in state.items() if name.startswith("weight.")})
        for name, parameter in self._named():
            for moment in _MOMENTS:
                if self.stage:
                    self._set_sharded(parameter, state[f"{moment}.{name}"], moment)
                else:
                    self._adam.state[parameter][moment].copy_(state[f"{moment}.{name}"])
        self._set_step(int(state["step"]))

    def _set_sharded(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        """Sets this worker's float32 shard of a parameter or of one of its moments."""
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        value = value.to(self.engine.device)
        if self.stage == 3:
            size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
            # The last shard is padded, which DeepSpeed's setters of whole tensors do not handle
            padded = torch.zeros(size * self.world_size, device=value.device)
            padded[: value.numel()] = value.flatten()
            value = padded[self.rank * size : (self.rank + 1) * size]
            set_weight, set_state = safe_set_local_fp32_param, safe_set_local_optimizer_state
        else:
            set_weight, set_state = safe_set_full_fp32_param, safe_set_full_optimizer_state
        if moment is None:
            set_weight(parameter, value)
        else:
            set_state(parameter, value, moment)


def _deepspeed_config(cluster: ClusterConfig, dtype: torch.dtype) -> JsonObject:
    """Returns DeepSpeed's settings, with which a layer's weights are whole only while it runs under ZeRO stage 3."""
    host = {"device": "cpu", "pin_memory": cluster.use_gpu}
    zero: JsonObject = {
        "stage": cluster.zero_stage,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
        "sub_group_size": BUCKET,
        "stage3_param_persistence_threshold": 4096,
        "stage3_prefetch_bucket_size": BUCKET,
        "stage3_max_live_parameters": BUCKET,
        "stage3_max_reuse_distance": 0,
    }
    if cluster.offload_optimizer:
        zero["offload_optimizer"] = host
    if cluster.offload_parameters:
        zero["offload_param"] = host
    config: JsonObject = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": cluster.micro_batches,
        "gradient_clipping": LARGEST_NORM,
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
    if dtype == torch.bfloat16:
        assert cluster.zero_stage, "bfloat16 weights have float32 masters in ZeRO's optimizer only"
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return config
