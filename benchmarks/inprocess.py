"""The stages of a run in one process (`promptmm.distributed.local`), from a run's settings."""

from pathlib import Path

from promptmm.distributed import local
from promptmm.distributed.config import ClusterConfig
from promptmm.distributed.evaluation import masks
from promptmm.distributed.resident import ResidentTeacher, load_resident
from promptmm.distributed.student_training import StudentJob
from promptmm.distributed.teacher_training import TeacherJob
from promptmm.distributed.worker import Worker
from promptmm.graph_store.backend import PartLocation, Session
from promptmm.graph_store.dataset import Dataset, open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.dgl.client import GraphClient
from promptmm.graph_store.dgl.partition import partition
from promptmm.graph_store.sources.formats import load_catalog
from promptmm.jobs.runs.worker_jobs import student_job
from promptmm.jobs.settings import Settings

start = local.start_worker


def prepare(settings: Settings) -> Dataset:
    """run.dir/dataset."""
    write_dataset(f"{settings.dir}/dataset", load_catalog(settings.source), {})
    return open_dataset(f"{settings.dir}/dataset")


def resident_teacher(settings: Settings, dataset: Dataset, worker: Worker) -> ResidentTeacher:
    """Graph, features and constants from the dataset itself, in place of the graph store."""
    return load_resident(worker, dataset, settings.teacher)


def standalone_client(settings: Settings, dataset: Dataset) -> GraphClient:
    """run.dir/graph in DGL's standalone store: one part, no servers; once in a process, with DGL_DIST_MODE=standalone."""
    import dgl.distributed

    folder = Path(settings.dir) / "graph"
    partition(dataset, str(folder), settings.graph)
    dgl.distributed.initialize(None)
    graph = dgl.distributed.DistGraph("promptmm", part_config=str(folder / "promptmm.json"))
    session = Session("alone", str(folder), (PartLocation("here", str(folder)),))
    return GraphClient(graph, session, folder, 0, ["here"])


def train_teacher(settings: Settings, dataset: Dataset, worker: Worker) -> None:
    """run.dir/teacher."""
    job = TeacherJob(settings.dir, settings.teacher, settings.evaluation, ClusterConfig(), settings.run.seed, None, None)
    local.train_teacher(job, worker, dataset)


def write_labels(settings: Settings, dataset: Dataset, epochs: int) -> StudentJob:
    """run.dir/labels/rev-0; returns the student's job."""
    job = student_job(settings, dataset, 0)
    local.write_labels(job.label_job(), settings.dir, epochs, dataset, {})
    return job


def train_student(settings: Settings, dataset: Dataset, worker: Worker) -> None:
    """run.dir/training/student/model."""
    local.train_student(student_job(settings, dataset, 0), worker, dataset)


__all__ = ["masks", "open_dataset", "prepare", "resident_teacher", "start", "train_student", "train_teacher", "write_labels"]
