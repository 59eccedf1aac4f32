"""`promptmm label`: labelers write the teacher's scores of candidate lists."""

from dataclasses import asdict

from ...core.storage import JsonObject
from ...distributed.execution.base import Executor
from ..runs.compatibility import check_trained_teacher
from ..runs.executors import open_executor
from ..runs.folder import open_run_dataset
from ..runs.labels import is_materialised, write_labels
from ..runs.lineage import label_inputs
from ..runs.shared import take_over
from ..runs.stages import run_stage
from ..settings import Settings
from .verb import Verb


def label(settings: Settings, executor: Executor | None = None) -> None:
    """teacher/ -> labels/rev-0/ for materialised labels; streamed and inline labels are made while the student trains."""
    check_trained_teacher(settings)
    dataset = open_run_dataset(settings)
    if settings.labels.run is not None:
        print(f"[label] nothing to write: the labels are those of {settings.labels.run} (labels.run)", flush=True)
        take_over(settings, dataset, "label")
        return
    if not is_materialised(settings):
        way = "distill.regime=inline" if settings.distill.regime == "inline" else "labels.mode=streamed"
        print(f"[label] nothing to write: labels are made while the student trains ({way})", flush=True)
        return

    def make() -> JsonObject:
        with open_executor(settings, dataset, executor) as opened:
            return asdict(write_labels(settings, dataset, 0, opened))

    run_stage(settings, "label", label_inputs(settings, dataset), make)


LABEL: Verb[Settings] = Verb(
    "label",
    label,
    ("run", "labels", "distill", "student", "cluster"),
    products=("labels", "teacher/rev-0/rankings"),
    needs=("train-teacher",),
    is_stage=True,
    shares_storage=True,
)
