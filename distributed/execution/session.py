"""Ray for the time of a command: a cluster that is there, or one on this machine that ends with the command."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import ray

from ...core.errors import InputError, RunError
from ...core.storage import join
from ...core.threads import spin_count
from ..config import ClusterConfig
from ..parent import has_parent, how_it_ended, tell_parent

LOOPBACK = "127.0.0.2"
START_ATTEMPTS = 3
LOOK_SECONDS = 0.2  # how often the processes of an embedded cluster are looked at
SIGACTION_BYTES = 256  # at least the size of a `struct sigaction`
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
# What a cluster of one machine does without: nobody looks at its metrics, and its only node is not taken away.
LEAN = {"RAY_enable_metrics_collection": "0", "RAY_TRAIN_METRICS_ENABLED": "0", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def worker_environment(config: ClusterConfig, streams_labels: bool = False) -> dict[str, str]:
    """Returns the environment of every worker process.

    Args:
        config: The cluster.
        streams_labels: Whether labelers will work beside students, on the same cores.
    """
    # Large temporaries come from the heap and stay there: fresh pages for each cost as much as the work on them. But sharded weights are to
    # save memory: whole layers that come and go by the heap double what a worker holds (ZeRO 3, 151 million parameters: 5.3 GiB to 2.8).
    kept = str(1 << (26 if config.zero_stage else 30))
    environment = {
        "DGLBACKEND": "pytorch",
        "PYTHONWARNINGS": "ignore",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
        "MALLOC_MMAP_THRESHOLD_": kept,
        "MALLOC_TRIM_THRESHOLD_": kept,
    }
    if not config.use_gpu:
        environment["DS_ACCELERATOR"] = "cpu"
    environment.update(spin_count(shares_cores=streams_labels))  # spinning threads would take the cores from the labelers
    return environment


def own_modules() -> dict[str, str]:
    """Environment in which workers find the modules of the folder that the command is started from: the user's own kinds.

    Nothing for a job that was submitted to a cluster: its working directory is on its workers' path already, wherever they run, and Ray
    refuses an environment variable that the job sets too.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return {}
    return {"PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])}


class RaySession:
    """Ray for the time of a command. An embedded cluster starts in a thread, so that the command can do something else meanwhile.

    Args:
        config: The cluster.
        num_cpus: Logical CPUs of an embedded one; None: room for the workers and their labelers.
        streams_labels: Whether labelers will work beside students, on the same cores.

    Attributes:
        is_own: Whether the cluster is an embedded one that ends with this session.
        environment: Environment variables of the workers.
    """

    def __init__(self, config: ClusterConfig, num_cpus: int | None = None, streams_labels: bool = False) -> None:
        self.config, self.num_cpus = config, num_cpus
        self.environment = {**worker_environment(config, streams_labels), **own_modules()}
        self.address = config.address or os.environ.get("RAY_ADDRESS") or "local"
        self.is_joined = ray.is_initialized()  # a caller (a test, a notebook) owns Ray
        self.is_own = self.address == "local" and not self.is_joined
        self._ready, self._closing, self._over = threading.Event(), threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to start an embedded cluster, or connects to the one that there is.

        Raises:
            InputError: no cluster answers at `cluster.address`.
        """
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if self.is_own:
            # The processes of Ray end with the thread that started them (PR_SET_PDEATHSIG), so it stays.
            self._thread = threading.Thread(target=self._hold, name="Ray", daemon=True)
            self._thread.start()
            return
        if not self.is_joined:
            _start_ray(self.address, {**QUIET, "runtime_env": {"env_vars": self.environment}})
        self._ready.set()

    def wait(self) -> None:
        """Waits until Ray can be used.

        Raises:
            RunError: this machine is too busy to start one.
        """
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends an embedded cluster with all its processes, or leaves the one that there is."""
        self._closing.set()
        if self._thread is not None:
            self._ready.wait()
        if not self.is_joined:
            ray.shutdown()
        self._over.set()

    def _hold(self) -> None:
        """Starts an embedded cluster, and stays until it is over.

        Where one of the cluster's processes ends before, this process ends at once and leaves the rest to its parent. Ray itself would
        end it as abruptly, up to a minute later.
        """
        # Logical CPUs: workers, labelers and Ray Data's own tasks; torch's threads are what bounds the real load.
        # Every worker may stream from labelers of its own.
        config = self.config
        num_cpus = self.num_cpus or max(os.cpu_count() or 1, config.num_workers * (1 + config.num_labelers) + 2)
        options: dict[str, Any] = {**QUIET, "num_cpus": num_cpus, "include_dashboard": False}
        if sys.platform == "linux":  # all of 127/8 is loopback; Ray replaces 127.0.0.1 itself by a reachable address
            options["_node_ip_address"] = LOOPBACK
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        try:
            # Inherited, not as a `runtime_env`: that starts every process twice, and leaves those unused that Ray starts in advance.
            with _environment({**self.environment, **LEAN}):
                _start_ray(self.address, options)
        except BaseException as error:  # raised in `wait`
            self._error = error
        self._ready.set()
        if self._error is None:
            tell_parent("logs", join(_node().get_session_dir_path(), "logs"))
        while has_parent() and self._error is None and not self._closing.wait(LOOK_SECONDS):
            ended = _ended_process()
            if ended is not None:
                tell_parent("cause", ended)
                os._exit(1)
        self._over.wait()


def _node() -> Any:
    """What Ray knows of the processes that it started here; it has no public way to ask."""
    return ray._private.worker._global_node


def _ended_process() -> str | None:
    """Says which process of the embedded cluster has ended, if one has."""
    for name, processes in _node().all_processes.items():
        for each in processes:
            code = each.process.poll()
            if code is not None:
                return f"Ray's {name.replace('_', ' ')} process ended ({how_it_ended(code)}), and with it this command"
    return None


@contextlib.contextmanager
def ray_session(config: ClusterConfig, num_cpus: int | None = None) -> Iterator[RaySession]:
    """Connects to the cluster, or starts an embedded one that ends with the block.

    Args:
        config: The cluster.
        num_cpus: Logical CPUs of an embedded one; None: room for the workers and their labelers.

    Raises:
        InputError: no cluster answers at `cluster.address`.
        RunError: this machine is too busy to start one.
    """
    session = RaySession(config, num_cpus)
    session.start()
    try:
        session.wait()
        yield session
    finally:
        session.close()


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables for the processes that start while the block runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _kept_handler(number: int) -> Iterator[None]:
    """Gives a signal the handler back that it had before the block, from any thread: Python's `signal.signal` works in the main one."""
    libc, before = ctypes.CDLL(None), ctypes.create_string_buffer(SIGACTION_BYTES)
    python_handler = signal.getsignal(number)
    libc.sigaction(number, None, before)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and python_handler is not None:
            signal.signal(number, python_handler)
        libc.sigaction(number, before, None)


def _start_ray(address: str, options: dict[str, Any]) -> None:
    """`ray.init`; an embedded cluster that a busy machine did not start within Ray's own 30 seconds is tried again.

    Raises:
        InputError: no cluster answers at the address.
        RunError: this machine is too busy to start one.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)  # it warns of a start outside the main thread
    for attempt in range(START_ATTEMPTS):
        try:
            with _kept_handler(signal.SIGTERM):  # Ray's own would abort the process
                ray.init(address=address, **options)
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
