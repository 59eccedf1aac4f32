"""What a run ends with: results.json, report.md and plots/."""

from ...core.artifact import read_manifest
from ...core.storage import JsonObject, join, write_bytes, write_json
from ...distributed.loop.stage import stage_url
from ...graph_store.dataset import Dataset
from ..sections import STAGES
from ..settings import Settings
from .report import cold_table, component_table, read_history, rounds_in_words, table, write_plots
from .stages import read_record

DATASET_FACTS = ("num_users", "num_items", "num_interactions", "users_without_train", "items_without_train", "modalities")


def read_student_manifest(settings: Settings) -> JsonObject:
    """Reads the manifest of the run's trained student.

    Raises:
        InputError: there is no complete student.
    """
    return read_manifest(join(stage_url(settings.dir, "student"), "model"), "student-model")


def write_results(settings: Settings, dataset: Dataset, evaluated: JsonObject) -> JsonObject:
    """Writes results.json; returns what it holds.

    Args:
        settings: Of the run.
        dataset: The run's.
        evaluated: The result of evaluate: metrics and facts of `student`, and of `teacher` or None, `bundle` where the bundle's item
            vectors are not all the student's own, and `cold` where the dataset holds items out.
    """
    teacher, student = evaluated["teacher"], dict(evaluated["student"])
    student["parameter_ratio"] = student["num_parameters"] / teacher["num_parameters"] if teacher else None
    student["serving_ratio"] = student["serving_bytes"] / teacher["serving_bytes"] if teacher else None
    student.setdefault("agreement", None)  # runs that were evaluated by earlier versions have none
    records = {verb: read_record(settings.dir, verb) for verb in STAGES}
    results: JsonObject = {
        "teacher": teacher,
        "student": student,
        "timings": {verb: round(record.seconds, 2) for verb, record in records.items() if record and record.done},
        "dataset": {key: dataset.manifest[key] for key in DATASET_FACTS},
        "seed": read_student_manifest(settings)["seed"],
        **{name: evaluated[name] for name in ("bundle", "cold") if name in evaluated},
    }
    write_json(join(settings.dir, "results.json"), results)
    return results


def write_report(settings: Settings, results: JsonObject) -> None:
    """Writes report.md and plots/, from what `write_results` returned."""
    parts = [table(results, settings.evaluation.cutoffs), *cold_table(results, settings.evaluation.cutoffs)]
    rounds = rounds_in_words(read_history(settings.dir, "student"), results["student"]["best_epoch"])
    parts += [] if rounds is None else [rounds]
    teacher = read_manifest(join(settings.teacher_dir, "teacher"), "teacher") if results["teacher"] is not None else {}
    if teacher.get("components") and teacher["selected_by"] is not None:
        parts.append(component_table(teacher["components"], teacher["selected_by"]))
    shown = "\n\n".join(parts)
    plots = write_plots(settings.dir, settings.evaluation.select_by)
    pictures = "\n".join(f"![{url.rsplit('/', 1)[-1]}](plots/{url.rsplit('/', 1)[-1]})" for url in plots)
    write_bytes(join(settings.dir, "report.md"), f"# {settings.dir}\n\n{shown}\n\n{pictures}\n".encode())
