"""`promptmm evaluate`: exact rankings of the whole catalog, by teacher and student."""

from dataclasses import asdict

from ...core.storage import JsonObject
from ...distributed.execution.base import Executor
from ...distributed.messages import StoredScores
from ...graph_store.catalog import COLD
from ...graph_store.dataset import Dataset
from ..runs.executors import open_executor
from ..runs.folder import open_run_dataset
from ..runs.lineage import evaluation_inputs
from ..runs.models import TrainedModel, agreement_of, trained_student, trained_teacher
from ..runs.new_items import bundle_items, cold_results, fit_new_items
from ..runs.results import read_student_manifest, write_report, write_results
from ..runs.stages import run_stage
from ..settings import Settings
from .verb import Verb


def evaluate(settings: Settings, executor: Executor | None = None) -> None:
    """Validation and test metrics of teacher, student and bundle, sizes, ratios, table and plots -> results.json, report.md, plots/."""
    dataset = open_run_dataset(settings)
    settings.evaluation.check_catalog(dataset.num_items)
    manifest, cache_dir = read_student_manifest(settings), settings.cluster.cache_dir
    taught = manifest["distillation"]["use_teacher"]

    def make() -> JsonObject:
        student = trained_student(settings.dir, cache_dir)
        maps = settings.export.map_untouched and dataset.manifest["items_without_train"] > 0
        item_map = fit_new_items(dataset, student, manifest["seed"]) if maps or dataset.has_split(COLD) else None
        with open_executor(settings, dataset, executor) as opened:
            teacher = trained_teacher(settings.teacher_dir, dataset, cache_dir) if taught else None
            evaluated: JsonObject = {
                "teacher": _of_model(settings, dataset, opened, teacher) if teacher is not None else None,
                "student": _of_model(settings, dataset, opened, student),
            }
            if teacher is not None:
                evaluated["student"]["agreement"] = agreement_of(teacher, student, dataset.rows("train"), settings.evaluation)
            bundle = bundle_items(dataset, student, item_map if maps else None)
            if bundle.num_mapped:
                counts = {"num_untouched": bundle.num_untouched, "num_mapped": bundle.num_mapped}
                evaluated["bundle"] = {**_metrics(settings, dataset, opened, bundle.scores), **counts}
        cold = cold_results(dataset, settings.evaluation, student, teacher, item_map)
        return evaluated if cold is None else {**evaluated, "cold": cold}

    record = run_stage(settings, "evaluate", evaluation_inputs(settings, dataset, manifest), make)
    write_report(settings, write_results(settings, dataset, record.result))


def _of_model(settings: Settings, dataset: Dataset, executor: Executor, model: TrainedModel) -> JsonObject:
    """The metrics of a model and its facts, as results.json has them."""
    return {**_metrics(settings, dataset, executor, model.stored), **asdict(model.facts)}


def _metrics(settings: Settings, dataset: Dataset, executor: Executor, scores: StoredScores) -> JsonObject:
    """The metrics of rankings by final scores, on every split that there is."""
    splits = [split for split in ("validation", "test") if dataset.has_split(split)]
    return {split: executor.evaluate(scores, split, settings.evaluation) for split in splits}


EVALUATE: Verb[Settings] = Verb(
    "evaluate",
    evaluate,
    ("run", "evaluation", "export", "cluster"),
    products=("results.json", "report.md", "plots"),
    needs=("distill",),
    is_stage=True,
    shares_storage=True,
)
