"""Jobs in this process: the same loops, tasks and engines as on Ray, with one worker and no sockets."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import torch

from ...core.config import EvaluationConfig
from ...core.ranking import evaluate
from ...core.storage import exists, join
from ...graph_store.dataset import Dataset, masks
from ..artifacts.stored_scores import open_scores
from ..config import ClusterConfig
from ..labels.files import labels_url
from ..labels.labeler import label_facts, labels_left, open_labeler, publish_labels, stream_here, work_of
from ..labels.rankings import rank_here
from ..messages import LabelJob, RankingJob, StoredScores, StudentJob, TeacherJob, TuneJob
from ..run_job import run_job
from ..surroundings import Surroundings
from ..worker import Worker, torch_threads
from .dataset_graph import DatasetGraph


def start_worker(threads: int, use_gpu: bool = False) -> Worker:
    """This process as the only worker.

    Args:
        threads: torch's threads.
        use_gpu: Whether it computes on the first GPU.
    """
    torch.set_num_threads(threads)
    return Worker(0, 1, torch.device("cuda" if use_gpu else "cpu"), ("here",))


@dataclass(frozen=True)
class LocalExecutor:
    """An `Executor` in this process.

    Attributes:
        cluster: Threads and device.
        run_url: The run's folder.
        dataset: The run's dataset; may withhold a split.
    """

    cluster: ClusterConfig
    run_url: str
    dataset: Dataset

    def run(self, job: TeacherJob | StudentJob | TuneJob) -> None:
        """See `Executor`."""
        worker = start_worker(self.cluster.worker_threads, self.cluster.use_gpu)
        graph_url = join(self.run_url, "graph")
        graph = DatasetGraph(self.dataset, graph_url if exists(join(graph_url, "manifest.json")) else None, self.cluster.cache_dir)
        run_job(_locally(job), worker, Surroundings(self.dataset, graph, self._stream))

    def _stream(self, job: LabelJob, epochs: range) -> Iterator[pa.Table]:
        return stream_here(job, self.dataset, epochs)

    def rank(self, job: RankingJob) -> None:
        """See `Executor`."""
        with torch_threads(self.cluster.worker_threads):
            rank_here(job, self.dataset)

    def label(self, job: LabelJob, run_url: str, epochs: int, metadata: dict) -> dict:
        """See `Executor`."""
        url, work, facts = labels_url(run_url, job.revision), work_of(job, self.dataset, range(epochs)), label_facts(job, epochs, metadata)
        left = labels_left(job, url, work, facts)
        with torch_threads(job.threads):
            labeler = open_labeler(job, self.dataset) if left else None
            for item in left:
                assert labeler is not None
                labeler.write(url, item)
        return publish_labels(url, work, facts)

    def evaluate(self, scores: StoredScores, split: str, config: EvaluationConfig) -> dict[str, float]:
        """See `Executor`."""
        held_out, exclude = masks(self.dataset, split)
        opened, further = open_scores(scores, lambda: self.dataset.rows("train"), self.cluster.cache_dir), config.metrics
        masked = held_out, exclude, config.cutoffs, config.memory_mib
        with torch_threads(self.cluster.worker_threads):
            return evaluate(opened.users, opened.items, *masked, further=further, histories=opened.histories)


def _locally(job: TeacherJob | StudentJob | TuneJob) -> TeacherJob | StudentJob | TuneJob:
    """The job for an executor that is local whatever the run's setting says: an experiment's cells are."""
    if isinstance(job, TuneJob):
        return TuneJob(replace(job.student, cluster=replace(job.student.cluster, executor="local", address=None)))
    return replace(job, cluster=replace(job.cluster, executor="local", address=None))
