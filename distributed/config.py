"""Where to run: the cluster and its workers. What to learn is `core/config.py`."""

import os
from dataclasses import dataclass

from ..core.errors import InputError
from ..core.settings import check_bounds, setting


@dataclass(frozen=True)
class ClusterConfig:
    """Ray cluster and Ray Train workers; section `cluster`."""

    engine: str = setting(
        "auto",
        "full: graph and tables whole in every worker; sampled: neighbour blocks, tables and features sharded over the workers; "
        "auto: full where it fits the hosts' memory (see plan), and what a run was started with stays",
        choices=("auto", "full", "sampled"),
    )
    executor: str = setting(
        "ray",
        "what runs the training loops: ray, on workers of a cluster or of this machine; local, in this process, with one worker and "
        "without Ray, DeepSpeed or sockets: the same numbers",
        choices=("ray", "local"),
    )
    address: str | None = setting(
        None,
        "address of a running Ray cluster ('auto' finds one); not set: RAY_ADDRESS, else an embedded one on this machine",
    )
    num_workers: int = setting(1, "Ray Train workers", ge=1)
    threads: int | None = setting(None, "torch threads of a worker; not set: this machine's cores shared among the workers", ge=1)
    use_gpu: bool = setting(False, "give every worker one GPU")
    zero_stage: int = setting(0, "DeepSpeed ZeRO stage of reduction layers and prompt: 0, 1, 2 or 3", ge=0, le=3)
    offload_optimizer: bool = setting(
        False,
        "keep float32 weights and Adam's moments of reduction layers and prompt in the host's memory, and step there; needs "
        "cluster.zero_stage of 1 to 3",
    )
    offload_parameters: bool = setting(
        False,
        "keep each worker's shard of the weights in the host's memory until a layer needs them; needs cluster.zero_stage=3",
    )
    micro_batches: int = setting(
        1,
        "shares of a teacher's batch that go through one after the other, with one step on their summed gradients: less memory, the same "
        "step. Needs cluster.engine=sampled: the full engine propagates over the whole graph whatever the batch, so that a share of the "
        "batch costs as much as all of it",
        ge=1,
    )
    checkpoint_activations: bool = setting(
        False,
        "activation checkpointing: the backward pass computes a reduction tower's hidden layers again in place of keeping them; needs "
        "teacher.hidden",
    )
    max_failures: int = setting(3, "restarts of the workers after a failure, from the last checkpoint", ge=0)
    num_labelers: int = setting(1, "label processes of the materialisation, and of each worker's stream", ge=1)
    start_timeout: float = setting(
        300.0, "longest wait for workers to get their resources, and of a student for a streamed block of labels, seconds", gt=0
    )
    host_memory: float | None = setting(
        None,
        "memory of the smallest host that runs workers, GiB; not set: this machine's without a Ray cluster's address, else not known",
        gt=0,
    )
    network_rate: float = setting(10.0, "network of a host, Gbit/s; for plan's bounds on the time of a step", gt=0)
    memory_rate: float | None = setting(None, "memory bandwidth of a worker, GB/s, for the same; not set: measured where plan runs", gt=0)
    compute_rate: float | None = setting(
        None, "float32 multiply-adds of a worker, 10^9/s, for the same; not set: measured where plan runs", gt=0
    )
    cache_dir: str | None = setting(None, "folder for local copies of remote artifacts; not set: the system's temporary folder")

    def __post_init__(self) -> None:
        check_bounds(self, "cluster")
        if self.executor == "local":
            self._check_local()
        if self.offload_optimizer and not self.zero_stage:
            raise InputError("cluster.offload_optimizer=true needs ZeRO's sharded optimizer; set cluster.zero_stage=1, 2 or 3")
        if self.offload_parameters and self.zero_stage != 3:
            raise InputError(
                f"cluster.offload_parameters=true needs sharded weights, and cluster.zero_stage={self.zero_stage} keeps them whole in "
                "every worker; set cluster.zero_stage=3"
            )

    def _check_local(self) -> None:
        """What only workers of Ray can do, where the loops run in this process."""
        if self.num_workers > 1:
            raise InputError(f"cluster.num_workers={self.num_workers}: cluster.executor=local is one worker; set cluster.executor=ray")
        if self.address is not None:
            raise InputError(f"cluster.address={self.address} has no meaning with cluster.executor=local; set cluster.executor=ray")
        if self.zero_stage:
            raise InputError(
                f"cluster.zero_stage={self.zero_stage}: sharded optimizers are DeepSpeed's, which cluster.executor=local does not use; set "
                "cluster.zero_stage=0 or cluster.executor=ray"
            )

    @property
    def worker_threads(self) -> int:
        """torch threads of each worker."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.num_workers)


@dataclass(frozen=True)
class LabelConfig:
    """Teacher labels for the students; section `labels`."""

    mode: str = setting(
        "materialised",
        "materialised: Arrow files in run.dir, memory-mapped; streamed: straight to the students",
        choices=("materialised", "streamed"),
    )
    epochs: int = setting(10, "distinct epochs of materialised labels; later student epochs reuse them in turn", ge=1)
    block_rows: int = setting(65_536, "examples of a label block; whole steps are kept together", ge=1)

    def __post_init__(self) -> None:
        check_bounds(self, "labels")
