"""Starting Ray, and running one loop on Ray Train workers with progress on the driver's terminal."""

import _thread
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray

from ..core.errors import InputError, RunError
from ..core.storage import filesystem, is_local, join, local_path, remove
from .config import ClusterConfig
from .progress import ProgressLines

POLL_SECONDS = 0.5
CALL_SECONDS = 60.0
LOOPBACK = "127.0.0.2"
START_ATTEMPTS = 3


def worker_environment(config: ClusterConfig) -> dict[str, str]:
    """Environment of every worker process."""
    # Large temporaries come from the heap and stay there: fresh pages for each cost as much as the work on them. But sharded weights are to
    # save memory: whole layers that come and go by the heap double what a worker holds (ZeRO 3, 151 million parameters: 5.3 GiB to 2.8).
    kept = str(1 << (26 if config.zero_stage else 30))
    environment = {
        "DGLBACKEND": "pytorch",
        "PYTHONWARNINGS": "ignore",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
        "OMP_WAIT_POLICY": "passive",  # spinning threads ruin each other where cores are shared
        "MALLOC_MMAP_THRESHOLD_": kept,
        "MALLOC_TRIM_THRESHOLD_": kept,
    }
    if not config.use_gpu:
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


@contextlib.contextmanager
def ray_session(config: ClusterConfig, num_cpus: int | None = None) -> Iterator[None]:
    """Connects to the cluster, or starts an embedded one that ends with the block.

    Args:
        config: The cluster.
        num_cpus: Logical CPUs of an embedded one; None: room for the workers and their labelers.

    Raises:
        InputError: no cluster answers at `cluster.address`, or it has too few GPUs for good.
    """
    if ray.is_initialized():  # a caller (a test, a notebook) owns the session
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address == "local":
        # Logical CPUs: workers, labelers and Ray Data's own tasks; torch's threads are what bounds the real load.
        # Every worker may stream from labelers of its own.
        num_cpus = num_cpus or max(os.cpu_count() or 1, config.num_workers * (1 + config.num_labelers) + 2)
        options.update(num_cpus=num_cpus, include_dashboard=False)
        if sys.platform == "linux":  # all of 127/8 is loopback; Ray replaces 127.0.0.1 itself by a reachable address
            options["_node_ip_address"] = LOOPBACK
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    _start_ray(address, {"runtime_env": {"env_vars": worker_environment(config)}, **options})
    try:
        yield
    finally:
        ray.shutdown()


def _start_ray(address: str, options: dict[str, Any]) -> None:
    """`ray.init`; an embedded cluster that a busy machine did not start within Ray's own 30 seconds is tried again.

    Raises:
        InputError: no cluster answers at the address.
        RunError: this machine is too busy to start one.
    """
    handler = signal.getsignal(signal.SIGTERM)
    for attempt in range(START_ATTEMPTS):
        try:
            ray.init(address=address, **options)
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray's own would abort the process
            return
        except ConnectionError as error:
            raise InputError(
                f"cluster.address={address}: no Ray cluster answers there ({error}); start one or leave the setting out"
            ) from error
        except Exception as error:  # Ray raises a plain one
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if attempt + 1 == START_ATTEMPTS:
                raise RunError(f"Ray did not start in {START_ATTEMPTS} attempts: the machine is too busy ({error})") from error


def start_progress() -> Any:
    """The actor that carries lines from the workers to the driver."""
    return ProgressLines.remote()  # type: ignore[attr-defined]


@contextlib.contextmanager
def watching(lines: Any, start_timeout: float, needs: str) -> Iterator[None]:
    """Prints the workers' lines while the block runs, and interrupts it where no worker has started in time.

    Raises:
        RunError: the cluster did not give the workers their resources within `start_timeout` seconds.
    """
    done, late = threading.Event(), threading.Event()
    deadline = time.monotonic() + start_timeout

    def show() -> None:
        started = False
        while True:
            last = done.wait(POLL_SECONDS)
            try:
                if not started and not late.is_set() and time.monotonic() > deadline:
                    started = ray.get(lines.has_started.remote(), timeout=CALL_SECONDS)
                    if not started and not last:
                        late.set()
                        _thread.interrupt_main()
                for line in ray.get(lines.drain.remote(), timeout=10):
                    print(line, flush=True)
            except (ray.exceptions.RayError, TimeoutError):
                pass  # a busy actor: the next round brings the lines
            if last:
                return

    def interrupt(signum: int, frame: Any) -> None:
        if late.is_set():
            raise KeyboardInterrupt

    # A shell starts what it puts in the background with SIGINT ignored: then `interrupt_main` would do nothing.
    deaf = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if deaf:
        signal.signal(signal.SIGINT, interrupt)
    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if late.is_set():
            raise RunError(
                f"no worker started within cluster.start_timeout={start_timeout:.0f} seconds: the cluster has no room for {needs}; "
                "add hosts, ask for fewer workers, or raise the timeout"
            ) from None
        raise
    finally:
        done.set()
        thread.join(timeout=15)
        if deaf:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def ray_storage(url: str) -> dict[str, Any]:
    """Arguments of a Ray `RunConfig` that keep its own files below a URL."""
    import pyarrow.fs

    if is_local(url):
        return {"storage_path": str(local_path(url))}
    fs, path = filesystem(url)
    return {"storage_path": path, "storage_filesystem": pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))}


def fit(name: str, loop: Callable[[dict], None], arguments: dict, config: ClusterConfig, run_url: str, lines: Any) -> None:
    """Runs `loop(arguments)` on Ray Train workers; a failed worker restarts all of them, up to `cluster.max_failures` times.

    The loop resumes by itself from the checkpoints in the run's folder.

    Raises:
        RunError: the workers failed more often than allowed; the message holds the last failure.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    storage_url = join(run_url, "training", "ray")
    run_name = f"{name}-{os.getpid()}-{os.urandom(3).hex()}"

    def announced(loop_arguments: dict) -> None:
        if ray.get(lines.failed.remote(), timeout=CALL_SECONDS) is not None:
            return  # a restart after an error that it cannot mend: the driver raises it
        ray.get(lines.start.remote(), timeout=CALL_SECONDS)
        try:
            loop(loop_arguments)
        except (InputError, FloatingPointError) as error:
            ray.get(lines.fail.remote(str(error)), timeout=CALL_SECONDS)
            raise
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                ray.get(lines.fail.remote(str(error.cause)), timeout=CALL_SECONDS)
            raise

    ray.get(lines.reset.remote(), timeout=CALL_SECONDS)

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
            **ray_storage(storage_url),
        ),
    )
    needs = f"{config.num_workers} workers of 1 CPU{' and 1 GPU' if config.use_gpu else ''} each"
    with watching(lines, config.start_timeout, needs):
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit()
            failure = ray.get(lines.failed.remote(), timeout=CALL_SECONDS)
            if failure is not None:
                raise InputError(failure)
        except SystemExit as end:  # Ray Train answers Ctrl-C by ending the run and then the process, with code 0
            raise KeyboardInterrupt from end
        except Exception as error:
            raise _explain(name, error) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)  # Ray Train leaves its own
            remove(join(storage_url, run_name))  # Ray's own snapshots: resuming is ours


def _explain(name: str, error: Exception) -> Exception:
    """The error for the person who started the run."""
    if isinstance(error, InputError):
        return error
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    return RunError(f"{name} failed on its workers: {failures[0]}")
