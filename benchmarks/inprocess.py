"""The stages of a run in one process (cluster.executor=local), and trainers whose epochs and steps a script takes by itself."""

from dataclasses import replace
from typing import Any

from promptmm.core.config import TeacherConfig
from promptmm.core.teacher import teacher_kind
from promptmm.distributed.engines.full.catalog import WholeCatalog, build_catalog
from promptmm.distributed.engines.full.trainer import FullTrainer
from promptmm.distributed.execution.dataset_graph import DatasetGraph
from promptmm.distributed.execution.local import LocalExecutor, start_worker
from promptmm.distributed.labels.labeler import stream_here
from promptmm.distributed.loop.totals import Totals
from promptmm.distributed.messages import StudentJob, TeacherJob
from promptmm.distributed.run_job import student_task
from promptmm.distributed.surroundings import Surroundings
from promptmm.distributed.tasks.base import Task
from promptmm.distributed.tasks.teacher import PromptTeacherTask
from promptmm.distributed.tasks.tuning import PromptTuner
from promptmm.distributed.tasks.whole_teacher import WholeTeacherTask
from promptmm.distributed.worker import Worker
from promptmm.graph_store.dataset import Dataset, masks, open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.sources.formats import load_catalog
from promptmm.jobs.runs import worker_jobs
from promptmm.jobs.settings import Settings

start = start_worker


def prepare(settings: Settings) -> Dataset:
    """run.dir/dataset."""
    write_dataset(f"{settings.dir}/dataset", load_catalog(settings.source), {})
    return open_dataset(f"{settings.dir}/dataset")


def partition(settings: Settings, dataset: Dataset) -> None:
    """run.dir/graph in one part, for the sampled engine: DGL's standalone store reads it."""
    from promptmm.graph_store.dgl.partition import partition as write_partition

    write_partition(dataset, f"{settings.dir}/graph", settings.graph)


def executor(settings: Settings, dataset: Dataset) -> LocalExecutor:
    """What runs the jobs of a run in this process."""
    return LocalExecutor(settings.cluster, settings.dir, dataset)


def teacher_job(settings: Settings, dataset: Dataset) -> TeacherJob:
    """The teacher's job, for this process."""
    job = worker_jobs.teacher_job(settings, dataset)
    return replace(job, cluster=replace(job.cluster, executor="local"))


def student_job(settings: Settings, dataset: Dataset) -> StudentJob:
    """The student's job, for this process; there has to be a teacher in run.dir where it learns from one."""
    job = worker_jobs.student_job(settings, dataset, 0)
    return replace(job, cluster=replace(job.cluster, executor="local"))


def train_teacher(settings: Settings, dataset: Dataset) -> None:
    """run.dir/teacher."""
    executor(settings, dataset).run(teacher_job(settings, dataset))


def write_labels(settings: Settings, dataset: Dataset, epochs: int) -> None:
    """run.dir/labels/rev-0."""
    job, here = student_job(settings, dataset).label_job(), executor(settings, dataset)
    if job.rankings is not None:
        here.rank(job.rankings)
    here.label(job, settings.dir, epochs, {})


def train_student(settings: Settings, dataset: Dataset) -> None:
    """run.dir/training/student/model."""
    executor(settings, dataset).run(student_job(settings, dataset))


def catalog_of(dataset: Dataset, worker: Worker, config: TeacherConfig | None) -> WholeCatalog:
    """Graph, and for a teacher's settings features and constants, from the dataset itself in place of the graph store."""
    return build_catalog(worker, config, *DatasetGraph(dataset).whole(worker, config is not None and config.reads_features))


def teacher_trainer(settings: Settings, dataset: Dataset, worker: Worker) -> FullTrainer:
    """A teacher at its start, without validation."""
    job = teacher_job(settings, dataset)
    task: Task = PromptTeacherTask(job, worker) if teacher_kind(job.config).has_towers else WholeTeacherTask(job, worker)
    return FullTrainer(task, catalog_of(dataset, worker, job.config), None)


def student_trainer(settings: Settings, dataset: Dataset, worker: Worker, resident: WholeCatalog | None = None) -> FullTrainer:
    """A student at its start, without validation.

    Args:
        settings: Of the run; with distill.regime=inline the prompt of the run's teacher is tuned beside it.
        dataset: The run's.
        worker: This process.
        resident: The teacher's catalog, where the prompt is tuned.
    """
    job = student_job(settings, dataset)
    around = Surroundings(dataset, DatasetGraph(dataset), lambda labels, epochs: stream_here(labels, dataset, epochs))
    tuner = PromptTuner.load(job, resident, worker) if resident is not None else None
    return FullTrainer(student_task(job, worker, around, tuner), resident or catalog_of(dataset, worker, None), None)


def train_epoch(trainer: Any, epoch: int) -> dict[str, float]:
    """An epoch as the epoch loop does it; returns its losses."""
    trainer.start_epoch(epoch)
    totals = Totals(trainer.worker)
    for batch in trainer.batches(epoch):
        totals.add(trainer.train_step(batch, epoch), batch.size / trainer.num_examples, f"epoch {epoch}, step {batch.step}")
    trainer.end_epoch()
    return totals.row(epoch)


__all__ = [
    "catalog_of", "executor", "masks", "open_dataset", "partition", "prepare", "start", "student_job", "student_trainer", "teacher_job",
    "teacher_trainer", "train_epoch", "train_student", "train_teacher", "write_labels",
]  # fmt: skip
