"""Running a job on Ray Train workers."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle

from ...core.errors import InputError, RunError
from ...core.storage import filesystem, is_local, join, local_path
from ..config import ClusterConfig
from .lines import CALL_SECONDS

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer


def ray_storage(url: str) -> dict[str, Any]:
    """Arguments of a Ray `RunConfig` that keep its own files below a URL."""
    import pyarrow.fs

    if is_local(url):
        return {"storage_path": str(local_path(url))}
    fs, path = filesystem(url)
    return {"storage_path": path, "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))}


def make_trainer(
    loop: Callable[[], None], config: ClusterConfig, run_url: str, name: str, max_failures: int, callbacks: Sequence[Any] = ()
) -> "TorchTrainer":
    """A Ray Train run of a loop on workers.

    Args:
        loop: What every worker does; it resumes by itself from the checkpoints in the run's folder.
        config: The workers.
        run_url: The run's folder.
        name: Of the folder that Ray keeps its own files in, see `ray_folder`.
        max_failures: Restarts of the workers; -1: no limit.
        callbacks: Of Ray Train (`UserCallback`), called in its controller.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    return TorchTrainer(
        loop,
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if config.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": 1, "GPU": 1} if config.use_gpu else {"CPU": 1},
            placement_strategy="SPREAD",
        ),
        run_config=RunConfig(
            name=name,
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=list(callbacks),
            **ray_storage(ray_folder(run_url)),
        ),
    )


def ray_folder(run_url: str) -> str:
    """Where Ray Train keeps snapshots of its own; they are removed after each use, since resuming is ours."""
    return join(run_url, "training", "ray")


def unique_name(name: str) -> str:
    """A name that no other process or attempt uses."""
    return f"{name}-{os.getpid()}-{os.urandom(3).hex()}"


def needs_of(config: ClusterConfig) -> str:
    """What the workers need of the cluster, in words."""
    return f"{config.num_workers} worker{'s' * (config.num_workers > 1)} of 1 CPU{' and 1 GPU' if config.use_gpu else ''} each"


def can_ever_fit(config: ClusterConfig) -> bool:
    """Whether the cluster, as it is, would have room for the workers if nothing else ran."""
    there = ray.cluster_resources()
    return there.get("CPU", 0) >= config.num_workers and (not config.use_gpu or there.get("GPU", 0) >= config.num_workers)


def room_now() -> str:
    """What the cluster has, in words."""
    there, free = ray.cluster_resources(), ray.available_resources()
    return ", ".join(f"{free.get(name, 0):g} of {there.get(name, 0):g} {name}s free" for name in ("CPU", "GPU"))


@contextlib.contextmanager
def noting_mistakes(lines: ActorHandle) -> Iterator[None]:
    """Tells the driver of an error that a restart cannot mend."""
    try:
        yield
    except (InputError, FloatingPointError) as error:
        ray.get(lines.fail.remote(str(error)), timeout=CALL_SECONDS)
        raise
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            ray.get(lines.fail.remote(str(error.cause)), timeout=CALL_SECONDS)
        raise


def explain(name: str, error: Exception) -> Exception:
    """The error for the person who started the run."""
    if isinstance(error, InputError):
        return error
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    return RunError(f"{name} failed on its workers: {failures[0]}")
