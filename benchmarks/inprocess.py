"""The stages of a run in one process, without Ray: the same trainers, loops and artifacts, for benchmarks on a small machine."""

import os
from pathlib import Path

import torch
from promptmm.distributed.config import ClusterConfig
from promptmm.distributed.evaluation import masks
from promptmm.distributed.labels import Labeler, labels_url, publish_labels, write_block
from promptmm.distributed.resident import ResidentTeacher, build_resident
from promptmm.distributed.student_training import StudentJob, run_student, train_graph
from promptmm.distributed.teacher_training import TeacherJob, run_teacher
from promptmm.distributed.worker import Worker
from promptmm.graph_store.client import GraphClient, ItemShard
from promptmm.graph_store.dataset import Dataset, open_dataset, write_dataset
from promptmm.graph_store.formats import load_catalog
from promptmm.graph_store.partition import partition
from promptmm.jobs.settings import Settings
from promptmm.jobs.verbs import student_job


def start(threads: int) -> Worker:
    """This process as the only worker; DeepSpeed wants a process group and its variables."""
    torch.set_num_threads(threads)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.update(LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    return Worker(0, 1, torch.device("cpu"), ("here",))


def prepare(settings: Settings) -> Dataset:
    """run.dir/dataset."""
    write_dataset(f"{settings.dir}/dataset", load_catalog(settings.source), {})
    return open_dataset(f"{settings.dir}/dataset")


def resident_teacher(settings: Settings, dataset: Dataset, worker: Worker) -> ResidentTeacher:
    """Graph, features and constants from the dataset itself, in place of the graph store."""
    loaded = {m: dataset.features(m) for m in dataset.modalities}
    rows, present = {m: x for m, (x, _) in loaded.items()}, {m: torch.from_numpy(p) for m, (_, p) in loaded.items()}
    return build_resident(worker, settings.teacher, train_graph(dataset), ItemShard(torch.arange(dataset.num_items), rows, present))


def standalone_client(settings: Settings, dataset: Dataset) -> GraphClient:
    """run.dir/graph in DGL's standalone store: one part, no servers; once in a process, with DGL_DIST_MODE=standalone."""
    import dgl.distributed

    folder = Path(settings.dir) / "graph"
    partition(dataset, str(folder), settings.graph)
    dgl.distributed.initialize(None)
    graph = dgl.distributed.DistGraph("promptmm", part_config=str(folder / "promptmm.json"))
    return GraphClient(graph, {"session": "alone", "locations": [("here", str(folder))]}, folder, 0, ["here"])


def train_teacher(settings: Settings, dataset: Dataset, worker: Worker) -> None:
    """run.dir/teacher."""
    job = TeacherJob(settings.dir, settings.teacher, settings.evaluation, ClusterConfig(), settings.run.seed, None, None)
    run_teacher(job, worker, resident_teacher(settings, dataset, worker))


def write_labels(settings: Settings, dataset: Dataset, epochs: int) -> StudentJob:
    """run.dir/labels/rev-0; returns the student's job."""
    job = student_job(settings, dataset, 0)
    threads = torch.get_num_threads()
    labeler, url = Labeler(job.label_job()), labels_url(settings.dir, 0)
    torch.set_num_threads(threads)  # a labeler takes one thread, and this process trains too
    written = [write_block(labeler, url, epoch, block) for epoch in range(epochs) for block in range(labeler.job.num_blocks)]
    publish_labels(labeler.job, url, epochs, written, {})
    return job


def train_student(settings: Settings, dataset: Dataset, worker: Worker) -> None:
    """run.dir/training/student/model."""
    run_student(student_job(settings, dataset, 0), worker)


__all__ = ["masks", "open_dataset", "prepare", "resident_teacher", "start", "train_student", "train_teacher", "write_labels"]
