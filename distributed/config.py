"""Declares the settings that say where to run: the cluster and its workers. Those that say what to learn are in `core/config/`."""

import os
from dataclasses import dataclass

from ..core.errors import InputError
from ..core.settings import check_bounds, setting


@dataclass(frozen=True)
class ClusterConfig:
    """Settings of the Ray cluster and of the workers; section `cluster`."""

    engine: str = setting(
        "auto",
        "full: graph and tables whole in every worker; sampled: neighbour blocks, with tables and features sharded over the workers; "
        "auto: full where it fits the hosts' memory (see plan), and a run that has started keeps its engine",
        choices=("auto", "full", "sampled"),
    )
    executor: str = setting(
        "ray",
        "what runs the training loops: ray: workers on a cluster or on this machine; local: this process, as one worker, without Ray, "
        "DeepSpeed or sockets, and with the same numbers",
        choices=("ray", "local"),
    )
    address: str | None = setting(
        None,
        "address of a running Ray cluster ('auto' finds one); not set: RAY_ADDRESS, or else a Ray that the command starts on this machine",
    )
    private_network: bool = setting(
        True,
        "give a Ray that the command starts a network of its own, which nobody else reaches, where the system allows that and the settings "
        "name nothing remote and no class of your own; false: set it where something else that the command does needs a network",
    )
    num_workers: int = setting(1, "Ray Train workers", ge=1)
    threads: int | None = setting(None, "torch threads of a worker; not set: this machine's cores shared among the workers", ge=1)
    use_gpu: bool = setting(False, "give every worker one GPU")
    gpus_per_cell: float = setting(
        1.0,
        "GPUs of a cell of an experiment; 0.1 lets ten cells share one, since a small catalog leaves most of a GPU idle; needs "
        "cluster.use_gpu=true",
        gt=0,
        le=1,
    )
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
        "shares of a teacher's batch that are computed one after the other, with one step on their summed gradients: less memory, the same "
        "step. Needs cluster.engine=sampled: the full engine propagates over the whole graph for any batch, so a share of the batch costs "
        "as much as all of it",
        ge=1,
    )
    checkpoint_activations: bool = setting(
        False,
        "activation checkpointing: the backward pass computes a reduction tower's hidden layers again in place of keeping them; needs "
        "teacher.hidden",
    )
    max_failures: int = setting(3, "how often the workers are started again after a failure, from the last checkpoint", ge=0)
    num_labelers: int = setting(
        1,
        "labelers: of the verb label where labels are materialised, or of each student's worker where they are streamed; as many processes "
        "rank users before, and make the lists of recommend",
        ge=1,
    )
    gpus_per_labeler: float = setting(
        0.0,
        "GPUs of each labeler, and of each process that ranks users for labels: 0: they score on CPUs; 0.25 lets four share a GPU; with "
        "cluster.executor=local any other number means the first GPU",
        ge=0,
        le=1,
    )
    start_timeout: float = setting(
        300.0, "longest wait for workers to get their resources, and for a streamed block of labels to reach a student, seconds", gt=0
    )
    scale_timeout: float = setting(
        0.0,
        "longest wait for training workers, seconds, where the cluster as it is can never have room for them and its autoscaler has to "
        "add hosts; where it is shorter than cluster.start_timeout, that counts",
        ge=0,
    )
    host_memory: float | None = setting(
        None,
        "memory of the smallest host that runs workers, GiB; not set: this machine's memory, or unknown where a Ray cluster has an address",
        gt=0,
    )
    network_rate: float = setting(10.0, "network rate of a host, Gbit/s; plan bounds the time of a step by it", gt=0)
    memory_rate: float | None = setting(
        None, "memory bandwidth of a worker, GB/s; plan bounds the time of a step by it; not set: measured where plan runs", gt=0
    )
    compute_rate: float | None = setting(
        None, "float32 multiply-adds of a worker, 10^9/s; plan bounds the time of a step by it; not set: measured where plan runs", gt=0
    )
    cache_dir: str | None = setting(None, "folder for local copies of remote artifacts; not set: the system's temporary folder")

    def __post_init__(self) -> None:
        check_bounds(self, "cluster")
        if self.executor == "local":
            self._check_local()
        if self.gpus_per_cell != 1 and not self.use_gpu:
            raise InputError(f"cluster.gpus_per_cell={self.gpus_per_cell:g} needs cells that compute on GPUs; set cluster.use_gpu=true")
        if self.offload_optimizer and not self.zero_stage:
            raise InputError("cluster.offload_optimizer=true needs ZeRO's sharded optimizer; set cluster.zero_stage=1, 2 or 3")
        if self.offload_parameters and self.zero_stage != 3:
            raise InputError(
                f"cluster.offload_parameters=true needs sharded weights, and cluster.zero_stage={self.zero_stage} keeps them whole in "
                "every worker; set cluster.zero_stage=3"
            )

    def _check_local(self) -> None:
        """Refuses settings that only workers of Ray can meet, where the training loops run in this process."""
        if self.num_workers > 1:
            raise InputError(f"cluster.num_workers={self.num_workers}: cluster.executor=local is one worker; set cluster.executor=ray")
        if self.address is not None:
            raise InputError(f"cluster.address={self.address} has no meaning with cluster.executor=local; set cluster.executor=ray")
        if self.num_labelers > 1:
            raise InputError(f"cluster.num_labelers={self.num_labelers}: cluster.executor=local labels in this process; leave it at 1")
        if self.zero_stage:
            raise InputError(
                f"cluster.zero_stage={self.zero_stage}: sharded optimizers are DeepSpeed's, which cluster.executor=local does not use; set "
                "cluster.zero_stage=0 or cluster.executor=ray"
            )

    @property
    def worker_threads(self) -> int:
        """Returns the number of torch threads of each worker."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.num_workers)

    @property
    def list_threads(self) -> int:
        """Returns the number of torch threads of each process that makes the lists of `recommend`."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.num_labelers)


@dataclass(frozen=True)
class LabelConfig:
    """Settings of the teacher's labels for the students; section `labels`."""

    mode: str = setting(
        "materialised",
        "materialised: Arrow files in run.dir, memory-mapped; streamed: straight to the students",
        choices=("materialised", "streamed"),
    )
    run: str | None = setting(
        None,
        "folder of another run on the same dataset, whose teacher and written labels this run's student learns from, so that several "
        "students share them; not set: this run trains and labels itself",
    )
    by: str = setting(
        "examples",
        "examples: lists are drawn and scored for every example of every epoch; users: the scores of a user's train items, of the "
        "teacher's ranking and of a pool are kept once, and the student draws lists from them in every epoch; needs mode=materialised",
        choices=("examples", "users"),
    )
    pool: int = setting(200, "uniform unseen items of a user that are kept; read with labels.by=users only", ge=1)
    seed: int | None = setting(None, "seed of what labels hold; not set: run.seed, or with labels.run that of the labels there", ge=0)
    epochs: int = setting(10, "epochs for which materialised labels by example are made; later student epochs use them again in turn", ge=1)
    block_rows: int = setting(65_536, "examples in a label block; a block holds whole steps, at least one", ge=1)
    scores: str = setting(
        "float16",
        "how scores are kept: float16, or uint8 with a range for each list, half the bytes; an error is at most 1/510 of the range",
        choices=("float16", "uint8"),
    )
    compression: str = setting("none", "compression of materialised labels by example: none, or zstd", choices=("none", "zstd"))

    def __post_init__(self) -> None:
        check_bounds(self, "labels")
        if self.run is not None and self.mode == "streamed":
            raise InputError(
                f"labels.run={self.run} names labels that are written, and labels.mode=streamed makes them for each student; set "
                "labels.mode=materialised"
            )
        if self.compression != "none" and (self.mode == "streamed" or self.by == "users"):
            how = "labels.by=users maps its files" if self.by == "users" else "labels.mode=streamed writes none"
            raise InputError(f"labels.compression={self.compression} is for files of labels by example, and {how}; leave it out")
        if self.by == "users" and self.mode == "streamed":
            raise InputError(
                "labels.by=users keeps labels once for all epochs, and labels.mode=streamed makes them anew; set labels.mode=materialised"
            )
