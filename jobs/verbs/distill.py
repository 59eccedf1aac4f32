"""`promptmm distill`: workers train the student, from a teacher or alone."""

from ...core.errors import InputError
from ...core.storage import JsonObject
from ...distributed.execution.base import Executor
from ..planning.engine import settle_engine
from ..runs.compatibility import check_trained_teacher, has_teacher
from ..runs.executors import open_executor
from ..runs.folder import open_run_dataset
from ..runs.labels import is_materialised
from ..runs.lineage import student_inputs, student_lineage
from ..runs.results import read_student_manifest
from ..runs.rounds import run_rounds
from ..runs.stages import require_done, run_stage
from ..runs.worker_jobs import samples
from ..settings import Settings
from .verb import Verb


def distill(settings: Settings, executor: Executor | None = None) -> None:
    """labels/ (or a resident teacher, or neither) -> the trained student, in one or several rounds."""
    dataset = open_run_dataset(settings)
    taught = has_teacher(settings, dataset)
    if not taught and settings.student.starts_from_teacher:
        raise InputError("student.warm_start and student.kind=mlp start from a teacher, and the dataset has no modality to train one from")
    if settings.distill.losses and not taught:
        raise InputError(
            f"distill.losses={settings.distill.losses} learn from a teacher's labels, and the dataset has no modality to train one from; "
            "leave distill.losses out, or set teacher.kind=lightgcn or mf"
        )
    if settings.distill.num_student and not taught:
        raise InputError(
            f"distill.num_student={settings.distill.num_student} are candidates for a teacher to score, and the dataset has no modality to "
            "train one from; set distill.num_student=0, or teacher.kind=lightgcn or mf"
        )
    if settings.distill.use_teacher and not taught:
        print("[distill] the dataset has no modality, so there is no teacher: the student trains alone", flush=True)
    settings = settle_engine(settings, dataset, "distill")
    if taught:
        require_done(settings.dir, "train-teacher", "distill")
        check_trained_teacher(settings)
        if is_materialised(settings):
            require_done(settings.dir, "label", "distill")
    lineage = student_lineage(settings, dataset, taught)
    if samples(settings):
        require_done(settings.dir, "partition", "distill")

    def make() -> JsonObject:
        with open_executor(settings, dataset, executor) as opened:
            number = run_rounds(settings, dataset, opened, lineage)
        manifest = read_student_manifest(settings)
        return {"best_epoch": manifest["best_epoch"], "num_parameters": manifest["num_parameters"], "rounds": number}

    run_stage(settings, "distill", student_inputs(settings, dataset, taught, lineage), make)


DISTILL: Verb[Settings] = Verb(
    "distill",
    distill,
    ("run", "student", "distill", "labels", "sampling", "evaluation", "cluster"),
    products=("training/student",),
    needs=("prepare",),
    is_stage=True,
    shares_storage=True,
)
