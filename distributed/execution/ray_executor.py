"""Jobs on Ray: Ray Train workers, graph servers, and pools of Ray Data actors."""

import contextlib
from collections.abc import Iterator
from types import TracebackType

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from torch import Tensor

from ...core.config import EvaluationConfig
from ...core.storage import join
from ...graph_store.dataset import open_dataset
from ..config import ClusterConfig
from ..messages import LabelJob, StudentJob, TeacherJob, TuneJob
from ..run_job import run_job
from ..surroundings import Surroundings
from ..worker import Worker
from .evaluation import evaluate_vectors
from .label_pool import materialise, stream_blocks
from .launch import fit
from .lines import shown_by, start_progress
from .served_graph import ServedGraph
from .session import ray_session

STOP_SECONDS = 60.0
Job = TeacherJob | StudentJob | TuneJob


class RayExecutor(contextlib.AbstractContextManager["RayExecutor"]):
    """An `Executor` on a Ray cluster, or on one of this machine's own that ends with the block.

    Args:
        cluster: Workers, and where they run.
        run_url: The run's folder.
    """

    def __init__(self, cluster: ClusterConfig, run_url: str) -> None:
        self.cluster, self.run_url = cluster, run_url
        self._stack = contextlib.ExitStack()
        self._lines: ActorHandle | None = None

    def __enter__(self) -> "RayExecutor":
        self._stack.enter_context(ray_session(self.cluster))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    @property
    def lines(self) -> ActorHandle:
        """The actor that carries lines to this terminal."""
        if self._lines is None:
            self._lines = start_progress()
        return self._lines

    def run(self, job: Job) -> None:
        """See `Executor`; a failed worker restarts all of them, up to `cluster.max_failures` times."""
        name = {TeacherJob: "train-teacher", StudentJob: "distill", TuneJob: "tune-prompt"}[type(job)]
        lines = self.lines
        with self._graph_service(job) as service:

            def loop() -> None:
                run_on_worker(job, service, lines)

            fit(name, loop, self.cluster, self.run_url, lines)

    @contextlib.contextmanager
    def _graph_service(self, job: Job) -> Iterator[ActorHandle | None]:
        """The supervisor of the graph servers while a job runs that reads more than the train interactions."""
        if not needs_graph(job):
            yield None
            return
        from ...graph_store.dgl.service import start_service

        service = start_service(join(self.run_url, "graph"), self.cluster.cache_dir)
        try:
            yield service
        finally:
            ray.get(service.stop.remote(), timeout=STOP_SECONDS)

    def label(self, job: LabelJob, run_url: str, epochs: int, metadata: dict) -> dict:
        """See `Executor`; a pool of `cluster.num_labelers` actors makes the blocks."""
        return materialise(job, run_url, epochs, self.cluster, metadata)

    def evaluate(self, users: Tensor, items: Tensor, split: str, config: EvaluationConfig) -> dict[str, float]:
        """See `Executor`; as many tasks as there are workers rank a share of the users each."""
        return evaluate_vectors(join(self.run_url, "dataset"), users, items, split, config, self.cluster)


def needs_graph(job: Job) -> bool:
    """Whether a job's workers read from the graph servers: features, or the sharded structure."""
    if isinstance(job, TuneJob):
        return True
    if isinstance(job, TeacherJob):
        return job.engine == "sampled" or job.config.reads_features
    return job.engine == "sampled" or (job.distill.use_teacher and job.distill.regime == "inline")


def run_on_worker(job: Job, service: ActorHandle | None, lines: ActorHandle) -> None:
    """What each Ray Train worker does.

    Args:
        job: The job.
        service: The supervisor of the graph servers, where the job needs them.
        lines: Carries lines to the driver.
    """
    training = job.student if isinstance(job, TuneJob) else job
    cluster = training.cluster
    worker = current_worker(cluster)
    dataset = open_dataset(join(training.run_url, "dataset"), cluster.cache_dir)

    def stream(labels: LabelJob, epochs: range) -> Iterator:
        return stream_blocks(labels, epochs, cluster)

    labelers = f"{cluster.num_labelers} labelers of 1 CPU each"
    run_job(job, worker, Surroundings(dataset, ServedGraph(service, dataset), stream, shown_by(lines), labelers))


def current_worker(cluster: ClusterConfig) -> Worker:
    """This process as a worker of its Ray Train group; sets torch's thread count, since Ray sets OMP_NUM_THREADS=1."""
    torch.set_num_threads(cluster.worker_threads)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device() if cluster.use_gpu else torch.device("cpu")
    node = ray.get_runtime_context().get_node_id()
    nodes = [node]
    if world_size > 1:
        gathered: list[str | None] = [None] * world_size
        dist.all_gather_object(gathered, node)
        nodes = [str(each) for each in gathered]
    return Worker(rank, world_size, device, tuple(nodes))
