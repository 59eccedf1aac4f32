"""`promptmm evaluate`: exact rankings of the whole catalog, by teacher and student."""

from dataclasses import asdict

from ...core.storage import JsonObject
from ...distributed.execution.base import Executor
from ...graph_store.dataset import Dataset
from ..runs.executors import open_executor
from ..runs.folder import open_run_dataset
from ..runs.lineage import evaluation_inputs
from ..runs.models import TrainedModel, trained_student, trained_teacher
from ..runs.new_items import cold_results
from ..runs.results import read_student_manifest, write_report, write_results
from ..runs.stages import run_stage
from ..settings import Settings
from .verb import Verb


def evaluate(settings: Settings, executor: Executor | None = None) -> None:
    """Validation and test metrics of teacher and student, sizes, ratios, table and plots -> results.json, report.md, plots/."""
    dataset = open_run_dataset(settings)
    settings.evaluation.check_catalog(dataset.num_items)
    manifest, cache_dir = read_student_manifest(settings), settings.cluster.cache_dir
    taught = manifest["distillation"]["use_teacher"]

    def make() -> JsonObject:
        with open_executor(settings, dataset, executor) as opened:
            teacher = trained_teacher(settings.dir, dataset, cache_dir) if taught else None
            student = trained_student(settings.dir, cache_dir)
            evaluated = {
                "teacher": _metrics(settings, dataset, opened, teacher) if teacher is not None else None,
                "student": _metrics(settings, dataset, opened, student),
            }
        cold = cold_results(dataset, settings.evaluation, student, teacher, manifest["seed"])
        return evaluated if cold is None else {**evaluated, "cold": cold}

    record = run_stage(settings, "evaluate", evaluation_inputs(settings, dataset, manifest), make)
    write_report(settings, write_results(settings, dataset, record.result))


def _metrics(settings: Settings, dataset: Dataset, executor: Executor, model: TrainedModel) -> JsonObject:
    """The metrics of a model on every split that there is, and its facts, as results.json has them."""
    metrics = {
        split: executor.evaluate(model.users, model.items, split, settings.evaluation)
        for split in ("validation", "test")
        if dataset.has_split(split)
    }
    return {**metrics, **asdict(model.facts)}


EVALUATE: Verb[Settings] = Verb(
    "evaluate",
    evaluate,
    ("run", "evaluation", "cluster"),
    products=("results.json", "report.md", "plots"),
    needs=("distill",),
    is_stage=True,
    shares_storage=True,
)
