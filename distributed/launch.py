"""Starting Ray, and running one loop on Ray Train workers with progress on the driver's terminal."""

import _thread
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray

from ..core.errors import InputError
from ..core.storage import filesystem, is_local, join, local_path, remove
from .config import ClusterConfig
from .progress import ProgressLines

POLL_SECONDS = 0.5


def worker_environment(config: ClusterConfig) -> dict[str, str]:
    """Environment of every worker process."""
    environment = {
        "DGLBACKEND": "pytorch",
        "PYTHONWARNINGS": "ignore",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
        "OMP_WAIT_POLICY": "passive",  # spinning threads ruin each other where cores are shared,
    }
    if not config.use_gpu:
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


@contextlib.contextmanager
def ray_session(config: ClusterConfig) -> Iterator[None]:
    """Connects to the cluster, or starts an embedded one that ends with the block.

    Raises:
        InputError: no cluster answers at `cluster.address`, or it has too few GPUs for good.
    """
    if ray.is_initialized():  # a caller (a test, a notebook) owns the session
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its C++ core writes over the progress lines
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address == "local":
        # Logical CPUs: workers, labelers and Ray Data's own tasks; torch's threads are what bounds the real load.
        options.update(num_cpus=max(os.cpu_count() or 1, 2 * config.num_workers + config.num_labelers + 2), include_dashboard=False)
    try:
        ray.init(address=address, runtime_env={"env_vars": worker_environment(config)}, **options)
    except ConnectionError as error:
        raise InputError(
            f"cluster.address={address}: no Ray cluster answers there ({error}); start one or leave the setting out"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def start_progress() -> Any:
    """The actor that carries lines from the workers to the driver."""
    return ProgressLines.remote()  # type: ignore[attr-defined]


@contextlib.contextmanager
def watching(lines: Any, start_timeout: float, needs: str) -> Iterator[None]:
    """Prints the workers' lines while the block runs, and interrupts it where no worker has started in time.

    Raises:
        RuntimeError: the cluster did not give the workers their resources within `start_timeout` seconds.
    """
    done, late = threading.Event(), threading.Event()
    deadline = time.monotonic() + start_timeout

    def show() -> None:
        started = False
        while True:
            last = done.wait(POLL_SECONDS)
            if not started and not late.is_set() and time.monotonic() > deadline:
                started = ray.get(lines.has_started.remote())
                if not started and not last:
                    late.set()
                    _thread.interrupt_main()
            try:
                for line in ray.get(lines.drain.remote(), timeout=10):
                    print(line, flush=True)
            except (ray.exceptions.RayError, TimeoutError):
                pass  # a busy actor: the next round brings the lines
            if last:
                return

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if late.is_set():
            raise RuntimeError(
                f"no worker started within cluster.start_timeout={start_timeout:.0f} seconds: the cluster has no room for {needs}; "
                "add hosts, ask for fewer workers, or raise the timeout"
            ) from None
        raise
    finally:
        done.set()
        thread.join(timeout=15)


def fit(name: str, loop: Callable[[dict], None], arguments: dict, config: ClusterConfig, run_url: str, lines: Any) -> None:
    """Runs `loop(arguments)` on Ray Train workers; a failed worker restarts all of them, up to `cluster.max_failures` times.

    The loop resumes by itself from the checkpoints in the run's folder.

    Raises:
        RuntimeError: the workers failed more often than allowed; the message holds the last failure.
    """
    import pyarrow.fs
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    storage_url = join(run_url, "training", "ray")
    storage: dict[str, Any] = {"storage_path": str(local_path(storage_url))}
    if not is_local(storage_url):
        fs, path = filesystem(storage_url)
        storage = {"storage_path": path, "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))}
    run_name = f"{name}-{os.getpid()}-{os.urandom(3).hex()}"

    def announced(loop_arguments: dict) -> None:
        ray.get(lines.start.remote())
        loop(loop_arguments)

    trainer = TorchTrainer(
        announced,
        train_loop_config=arguments,
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if config.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": 1, "GPU": 1} if config.use_gpu else {"CPU": 1},
            placement_strategy="SPREAD",
        ),
        run_config=RunConfig(
            name=run_name,
            failure_config=FailureConfig(max_failures=config.max_failures),
            **storage,
        ),
    )
    needs = f"{config.num_workers} workers of 1 CPU{' and 1 GPU' if config.use_gpu else ''} each"
    with watching(lines, config.start_timeout, needs):
        try:
            trainer.fit()
        except Exception as error:
            raise _explain(name, error) from error
        finally:
            remove(join(storage_url, run_name))  # Ray's own snapshots: resuming is ours


def _explain(name: str, error: Exception) -> Exception:
    """The InputError or RuntimeError that a worker's failure amounts to."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, InputError):
                return InputError(str(cause))
            cause = cause.__cause__ or getattr(cause, "cause", None)
    return RuntimeError(f"{name} failed on its workers: {failures[0]}")
