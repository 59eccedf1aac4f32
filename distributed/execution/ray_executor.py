"""Jobs on Ray: Ray Train workers, graph servers, and pools of Ray Data actors."""

import contextlib
import threading
from collections.abc import Iterator
from types import TracebackType

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.actor import ActorHandle

from ...core.config import EvaluationConfig
from ...core.storage import join
from ...graph_store.dataset import open_dataset
from ..config import ClusterConfig
from ..messages import EvaluationJob, LabelJob, RankingJob, StoredScores, StudentJob, TeacherJob, TuneJob
from ..progress import saying_if_slow, show_here
from ..run_job import run_job
from ..surroundings import Surroundings
from ..worker import Worker
from .evaluation import add_shares, evaluate_in_tasks, rank_share
from .kept_workers import KeptWorkers
from .label_pool import materialise, rank_users, stream_blocks
from .lines import shown_by, start_progress
from .served_graph import ServedGraph
from .session import RaySession

STOP_SECONDS = 60.0
Job = TeacherJob | StudentJob | TuneJob


class RayExecutor(contextlib.AbstractContextManager["RayExecutor"]):
    """An `Executor` on a Ray cluster, or on one of this machine's own that ends with the block.

    On a cluster of its own it keeps the workers between jobs; on another one they leave after each job.

    Args:
        cluster: Workers, and where they run.
        run_url: The run's folder.
        expects_jobs: Whether workers are to be started before the first job.
        streams_labels: Whether labelers will work beside students, on the same cores.
    """

    def __init__(self, cluster: ClusterConfig, run_url: str, expects_jobs: bool = False, streams_labels: bool = False) -> None:
        self.cluster, self.run_url, self.expects_jobs = cluster, run_url, expects_jobs
        self._session = RaySession(cluster, streams_labels=streams_labels)
        self._kept: KeptWorkers | None = None
        self._are_clients = False
        self._starting: threading.Thread | None = None
        self._lines: ActorHandle | None = None

    def __enter__(self) -> "RayExecutor":
        self._session.start()
        if self.expects_jobs and self._session.is_own:
            self._starting = threading.Thread(target=self._start_workers, name="start of workers", daemon=True)
            self._starting.start()
        return self

    def _start_workers(self) -> None:
        """Starts workers as soon as Ray runs; a Ray that does not start is the error of whoever waits for it."""
        with contextlib.suppress(Exception):
            self._session.wait()
            kept = KeptWorkers(self.cluster, self.run_url)
            kept.start()
            self._kept = kept

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._starting is not None:
            self._starting.join(STOP_SECONDS)
        self._session.close()
        if self._kept is not None:
            self._kept.clean()

    def _wait_for_ray(self, name: str) -> None:
        with saying_if_slow(show_here, f"[{name}] starting Ray"):
            self._session.wait()

    @property
    def lines(self) -> ActorHandle:
        """The actor that carries lines to this terminal."""
        if self._kept is not None:
            return self._kept.desk
        if self._lines is None:
            self._lines = start_progress()
        return self._lines

    def run(self, job: Job) -> None:
        """See `Executor`; a failed worker restarts all of them, up to `cluster.max_failures` times."""
        name = name_of(job)
        self._wait_for_ray(name)
        with self._graph_service(job) as service:
            workers = self._workers_for(job)
            try:
                workers.run(name, run_on_worker, job, service)
                if not self._session.is_own:
                    workers.leave()
            except BaseException:
                if not self._session.is_own:  # its resources are others' too
                    with contextlib.suppress(Exception):
                        workers.end()
                raise
            finally:
                if not self._session.is_own:
                    self._kept = None

    def _workers_for(self, job: Job) -> KeptWorkers:
        """Workers for a job: a process is a client of graph servers once, since DGL keeps state in it."""
        if self._starting is not None:
            self._starting.join()
        if self._kept is not None and (not self._kept.are_usable or (self._are_clients and job.reads_graph)):
            self._kept.leave()
            self._kept, self._are_clients = None, False
        self._are_clients = self._are_clients or job.reads_graph
        if self._kept is None:
            self._kept = KeptWorkers(self.cluster, self.run_url)
        return self._kept

    @contextlib.contextmanager
    def _graph_service(self, job: Job) -> Iterator[ActorHandle | None]:
        """The supervisor of the graph servers while a job runs that reads more than the train interactions."""
        if not job.reads_graph:
            yield None
            return
        from ...graph_store.dgl.service import start_service

        service = start_service(join(self.run_url, "graph"), self.cluster.cache_dir)
        if self._session.is_own:  # its only host is known, so that servers can start beside the workers
            num_workers = self.cluster.num_workers
            here = ray.get_runtime_context().get_node_id()
            service.prepare.remote([here] * num_workers, num_workers if training_of(job).engine == "sampled" else 1)
        try:
            yield service
        finally:
            with contextlib.suppress(ray.exceptions.RayError):  # it died, and its servers with it: what is trained is trained
                ray.get(service.stop.remote(), timeout=STOP_SECONDS)
            ray.kill(service)

    def rank(self, job: RankingJob) -> None:
        """See `Executor`; a pool of `cluster.num_labelers` actors ranks ranges of users."""
        self._wait_for_ray("label")
        rank_users(job, self.cluster, self.lines)

    def label(self, job: LabelJob, run_url: str, epochs: int, metadata: dict) -> dict:
        """See `Executor`; a pool of `cluster.num_labelers` actors makes the blocks."""
        self._wait_for_ray("label")
        return materialise(job, run_url, epochs, self.cluster, metadata, self.lines)

    def evaluate(self, scores: StoredScores, split: str, config: EvaluationConfig) -> dict[str, float]:
        """See `Executor`; the workers rank a share of the users each, or as many tasks where no worker waits for a job."""
        self._wait_for_ray("evaluate")
        url, cluster = join(self.run_url, "dataset"), self.cluster
        job = EvaluationJob(url, scores, split, config, cluster.worker_threads, cluster.cache_dir)
        if self._kept is not None and self._kept.are_usable:
            shares = self._kept.run("evaluate", rank_on_worker, job)
        else:
            shares = evaluate_in_tasks(job, cluster, self.lines)
        return add_shares(job, open_dataset(url, cluster.cache_dir).num_items, shares)


def name_of(job: Job) -> str:
    """What messages call a job."""
    return {TeacherJob: "train-teacher", StudentJob: "distill", TuneJob: "tune-prompt"}[type(job)]


def training_of(job: Job) -> TeacherJob | StudentJob:
    """The job of training whose settings count."""
    return job.student if isinstance(job, TuneJob) else job


def run_on_worker(job: Job, service: ActorHandle | None, lines: ActorHandle) -> None:
    """What each Ray Train worker does.

    Args:
        job: The job.
        service: The supervisor of the graph servers, where the job needs them.
        lines: Carries lines to the driver.
    """
    training, show = training_of(job), shown_by(lines)
    cluster = training.cluster
    worker = current_worker(cluster)
    dataset = open_dataset(join(training.run_url, "dataset"), cluster.cache_dir)

    def stream(labels: LabelJob, epochs: range) -> Iterator:
        return stream_blocks(labels, epochs, cluster)

    graph = ServedGraph(service, dataset, lambda line: show(f"[{name_of(job)}] {line}"))
    labelers = f"{cluster.num_labelers} labelers of 1 CPU each"
    run_job(job, worker, Surroundings(dataset, graph, stream, show, labelers))


def rank_on_worker(job: EvaluationJob, lines: ActorHandle) -> list[np.ndarray]:
    """Ranks the share of the users that this worker of Ray Train has; see `rank_share`."""
    context = ray.train.get_context()
    return rank_share(job, context.get_world_rank(), context.get_world_size())


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
