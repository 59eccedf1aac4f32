"""`promptmm train-teacher`: workers train the teacher, with a graph server for every part."""

from ...core.artifact import read_manifest
from ...core.errors import InputError
from ...core.storage import JsonObject, join
from ...distributed.execution.base import Executor
from ..planning.engine import settle_engine
from ..runs.compatibility import check_teachable
from ..runs.executors import open_executor
from ..runs.folder import open_run_dataset
from ..runs.lineage import teacher_inputs
from ..runs.shared import take_over
from ..runs.stages import require_done, run_stage
from ..runs.worker_jobs import teacher_job, uses_graph
from ..settings import Settings
from .verb import Verb


def train_teacher(settings: Settings, executor: Executor | None = None) -> None:
    """graph/ -> teacher/ with revision 0 of its vectors."""
    dataset = open_run_dataset(settings)
    if settings.labels.run is not None:
        print(f"[train-teacher] nothing to train: the teacher is that of {settings.labels.run} (labels.run)", flush=True)
        take_over(settings, dataset, "train-teacher")
        return
    check_teachable(settings, dataset)
    settings = settle_engine(settings, dataset, "train-teacher")
    if uses_graph(settings, "train-teacher"):
        require_done(settings.dir, "partition", "train-teacher")
        if read_manifest(join(settings.dir, "graph"), "graph")["dataset"] != dataset.digest:
            raise InputError(f"{settings.dir}/graph was made from another dataset/; add run.redo=partition")

    def make() -> JsonObject:
        with open_executor(settings, dataset, executor) as opened:
            opened.run(teacher_job(settings, dataset))
        manifest = read_manifest(join(settings.dir, "teacher"), "teacher")
        return {"best_epoch": manifest["best_epoch"], "num_parameters": manifest["num_parameters"]}

    run_stage(settings, "train-teacher", teacher_inputs(settings, dataset), make)


TRAIN_TEACHER: Verb[Settings] = Verb(
    "train-teacher",
    train_teacher,
    ("run", "teacher", "labels", "sampling", "evaluation", "cluster"),
    products=("teacher", "training/teacher", "components"),
    needs=("prepare",),
    is_stage=True,
    shares_storage=True,
)
