"""Stages in one process, without Ray Train and graph servers: the same trainers, loops and artifacts with one worker.

Graph and features come from the dataset itself. Cells of an experiment run so, many beside each other, and so do benchmarks.
"""

import os

import torch

from ..graph_store.dataset import Dataset
from .labels import Labeler, LabelJob, labels_url, publish_labels, write_block
from .resident import load_resident
from .student_training import StudentJob, run_student
from .teacher_training import TeacherJob, run_teacher
from .worker import Worker


def start_worker(threads: int, use_gpu: bool = False) -> Worker:
    """This process as the only worker, with the process group that DeepSpeed wants; calling it again changes the threads only."""
    torch.set_num_threads(threads)
    if not use_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.update(LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if use_gpu else "gloo"
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    return Worker(0, 1, torch.device("cuda" if use_gpu else "cpu"), ("here",))


def train_teacher(job: TeacherJob, worker: Worker, dataset: Dataset) -> None:
    """The job's teacher/; it goes on from its last checkpoint."""
    run_teacher(job, worker, load_resident(worker, dataset, job.config), dataset)


def write_labels(job: LabelJob, run_url: str, epochs: int, dataset: Dataset, metadata: dict) -> dict:
    """The run's labels/rev-<r>/, as `materialise` makes it; returns the manifest's facts."""
    threads = torch.get_num_threads()
    labeler, url = Labeler(job, dataset), labels_url(run_url, job.revision)
    torch.set_num_threads(threads)  # a labeler takes one thread, and this process trains too
    written = [write_block(labeler, url, epoch, block) for epoch in range(epochs) for block in range(job.num_blocks)]
    return publish_labels(job, url, epochs, written, metadata)


def train_student(job: StudentJob, worker: Worker, dataset: Dataset) -> None:
    """A round of the job's training/student/; it goes on from its last checkpoint."""
    run_student(job, worker, dataset)
