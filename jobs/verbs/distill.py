"""`promptmm distill`: Ray Train workers train the student, from a teacher or alone."""

from collections.abc import Callable
from typing import Any

from ...core.errors import InputError
from ...core.storage import join
from ...distributed.launch import fit, ray_session, start_progress
from ...distributed.prompt_tuning import tune_prompt_loop
from ...distributed.student_training import StudentJob, train_student_loop
from ...graph_store.dataset import Dataset
from ..planning.engine import settle_engine
from ..runs.compatibility import check_trained_teacher, has_teacher
from ..runs.folder import open_run_dataset
from ..runs.labels import is_materialised, write_labels
from ..runs.lineage import student_inputs, student_lineage
from ..runs.results import read_student_manifest
from ..runs.rounds import run_rounds
from ..runs.stages import require_done, run_stage
from ..runs.worker_jobs import sampling_of
from ..settings import Settings
from .verb import Verb

STOP_SECONDS = 60  # longest wait for graph servers to stop


def distill(settings: Settings) -> None:
    """labels/ (or a resident teacher, or neither) -> the trained student, in one or several rounds."""
    dataset = open_run_dataset(settings)
    taught = has_teacher(settings, dataset)
    if not taught and (settings.student.warm_start or settings.student.kind == "mlp"):
        raise InputError("student.warm_start and student.kind=mlp start from a teacher, and the dataset has no modality to train one from")
    if settings.distill.use_teacher and not taught:
        print("[distill] the dataset has no modality, so there is no teacher: the student trains alone", flush=True)
    settings = settle_engine(settings, dataset, "distill")
    if taught:
        require_done(settings.dir, "train-teacher", "distill")
        check_trained_teacher(settings)
        if is_materialised(settings):
            require_done(settings.dir, "label", "distill")
    lineage = student_lineage(settings, dataset, taught)
    if sampling_of(settings) is not None:
        require_done(settings.dir, "partition", "distill")

    def make() -> dict[str, Any]:
        with ray_session(settings.cluster):
            _train(settings, dataset, taught, lineage)
        manifest = read_student_manifest(settings)
        return {"best_epoch": manifest["best_epoch"], "num_parameters": manifest["num_parameters"]}

    run_stage(settings, "distill", student_inputs(settings, dataset, taught, lineage), make)


def _train(settings: Settings, dataset: Dataset, taught: bool, lineage: dict[str, str]) -> None:
    """Runs the rounds on Ray Train workers."""
    import ray

    from ...graph_store.servers import start_service

    tunes = settings.distill.regime == "inline" or settings.distill.rounds > 1
    needs_graph = sampling_of(settings) is not None or (taught and tunes)
    lines = start_progress()
    service = start_service(join(settings.dir, "graph"), settings.cluster.cache_dir) if needs_graph else None

    def on_workers(name: str, loop: Callable[[dict], None]) -> Callable[[StudentJob], None]:
        return lambda job: fit(name, loop, {"job": job}, settings.cluster, settings.dir, lines)

    try:
        run_rounds(
            settings,
            dataset,
            train=on_workers("distill", train_student_loop),
            tune=on_workers("tune-prompt", tune_prompt_loop),
            make_labels=lambda revision: write_labels(settings, dataset, revision),
            service=service,
            lines=lines,
            lineage=lineage,
        )
    finally:
        if service is not None:
            ray.get(service.stop.remote(), timeout=STOP_SECONDS)


DISTILL = Verb(
    "distill",
    distill,
    ("run", "student", "distill", "labels", "sampling", "evaluation", "cluster"),
    products=("training/student",),
    needs=("prepare",),
    is_stage=True,
    shares_storage=True,
)
