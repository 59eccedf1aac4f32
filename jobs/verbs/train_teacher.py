"""`promptmm train-teacher`: Ray Train workers train the teacher, with a graph server for every part."""

from typing import Any

from ...core.errors import InputError
from ...core.storage import join, read_manifest
from ...distributed.launch import fit, ray_session, start_progress
from ...distributed.teacher_training import train_teacher_loop
from ...graph_store.dataset import Dataset
from ..planning.engine import settle_engine
from ..runs.compatibility import check_teachable
from ..runs.folder import open_run_dataset
from ..runs.lineage import teacher_inputs
from ..runs.stages import run_stage
from ..runs.worker_jobs import teacher_job
from ..settings import Settings
from .verb import Verb

STOP_SECONDS = 60  # longest wait for graph servers to stop


def train_teacher(settings: Settings) -> None:
    """graph/ -> teacher/ with revision 0 of its vectors."""
    dataset = open_run_dataset(settings)
    check_teachable(settings, dataset)
    if read_manifest(join(settings.dir, "graph"), "graph")["dataset"] != dataset.digest:
        raise InputError(f"{settings.dir}/graph was made from another dataset/; add run.redo=partition")
    settings = settle_engine(settings, dataset, "train-teacher")

    def make() -> dict[str, Any]:
        with ray_session(settings.cluster):
            _train(settings, dataset)
        manifest = read_manifest(join(settings.dir, "teacher"), "teacher")
        return {"best_epoch": manifest["best_epoch"], "num_parameters": manifest["num_parameters"]}

    run_stage(settings, "train-teacher", teacher_inputs(settings, dataset), make)


def _train(settings: Settings, dataset: Dataset) -> None:
    import ray

    from ...graph_store.servers import start_service

    service, lines = start_service(join(settings.dir, "graph"), settings.cluster.cache_dir), start_progress()
    try:
        job = teacher_job(settings, dataset, service, lines)
        fit("train-teacher", train_teacher_loop, {"job": job}, settings.cluster, settings.dir, lines)
    finally:
        ray.get(service.stop.remote(), timeout=STOP_SECONDS)


TRAIN_TEACHER = Verb(
    "train-teacher",
    train_teacher,
    ("run", "teacher", "sampling", "evaluation", "cluster"),
    products=("teacher", "training/teacher"),
    needs=("partition",),
    is_stage=True,
    shares_storage=True,
)
