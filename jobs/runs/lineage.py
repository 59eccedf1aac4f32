"""What every stage is made with: the settings and checksums that decide its result, as the JSON-able values of its record.

A stage is repeated only where these differ from its record, so whatever decides a result must be here, and what does not must not be.
"""

from ...core.artifact import manifest_digest, read_manifest
from ...core.config import as_dict
from ...core.storage import JsonObject, join
from ...distributed.artifacts.teacher import revision_digest
from ...distributed.labels.files import labels_url
from ...graph_store.dataset import Dataset
from ..settings import Settings
from .imported_vectors import checksums
from .labels import is_materialised
from .worker_jobs import samples, student_job

Inputs = JsonObject
LABELS_MADE = "labels_made"  # of a student's inputs: the checksum of labels that are written
PLANNED = ("teacher", "student", "distill", "labels", "sampling", "graph", "cluster")
UNMAPPED = {"map_untouched": False}  # the export settings of a bundle whose item vectors are all the student's own
# Settings of cluster that no figure of a plan reads.
NOT_PLANNED = ("address", "cache_dir", "start_timeout", "max_failures", "threads", "gpus_per_cell", "gpus_per_labeler")


def dataset_inputs(settings: Settings) -> Inputs:
    """Inputs of prepare: the source, but for the memory that reading it may take; or the dataset that is joined, by its checksum."""
    if settings.source.joined is not None:
        return {"joined": manifest_digest(read_manifest(settings.source.joined, "dataset"))}
    return {"source": {name: value for name, value in as_dict(settings.source).items() if name != "memory_mib"}}


def graph_inputs(settings: Settings, dataset: Dataset) -> Inputs:
    """Inputs of partition."""
    return {"graph": as_dict(settings.graph), "dataset": dataset.digest}


def plan_inputs(settings: Settings, dataset: Dataset) -> Inputs:
    """What a plan depends on, beside the machine."""
    inputs: Inputs = {"dataset": dataset.digest, **{section: as_dict(getattr(settings, section)) for section in PLANNED}}
    for name in NOT_PLANNED:
        del inputs["cluster"][name]
    return inputs


def teacher_inputs(settings: Settings, dataset: Dataset) -> Inputs:
    """Inputs of train-teacher, for settings with the run's engine; the files that vectors are read from count by their checksums."""
    vectors = checksums(settings.teacher)
    return {
        "teacher": as_dict(settings.teacher),
        "engine": _engine(settings),
        "select_by": _select_by(settings, dataset),
        "run": {"seed": settings.run.seed},
        "dataset": dataset.digest,
        **({"vectors": vectors} if vectors else {}),
    }


def label_inputs(settings: Settings, dataset: Dataset) -> Inputs:
    """Inputs of label; the labels' own manifest keeps the same identity of the candidate lists (`LabelJob.candidates`)."""
    candidates = student_job(settings, dataset, 0).label_job().candidates()
    seed = candidates.pop("seed")
    by_example: Inputs = {}
    if "examples" in candidates:  # labels by user are for all of them, and for any batch
        by_example["student"] = {"examples": candidates.pop("examples"), "train": {"batch_size": settings.student.train.batch_size}}
    return {
        "labels": as_dict(settings.labels),
        "distill": candidates,
        **by_example,
        "run": {"seed": seed},
        "teacher": revision_digest(join(settings.dir, "teacher"), 0),
    }


def student_lineage(settings: Settings, dataset: Dataset, taught: bool) -> dict[str, str]:
    """Checksums of what a student is made from: dataset, and with a teacher its first revision, and labels that are written."""
    lineage = {"dataset": dataset.digest}
    if taught and is_materialised(settings):
        lineage["labels"] = manifest_digest(read_manifest(labels_url(settings.teacher_dir, 0), "labels"))
    if taught:
        lineage["teacher"] = revision_digest(join(settings.teacher_dir, "teacher"), 0)
    return lineage


def distillation_settings(settings: Settings, taught: bool) -> Inputs:
    """Settings that decide a student: its own, and with a teacher those of distillation and labels."""
    return {
        "student": as_dict(settings.student),
        "distill": as_dict(settings.distill) if taught else {"use_teacher": settings.distill.use_teacher},
        "labels": as_dict(settings.labels) if taught else None,
    }


def student_inputs(settings: Settings, dataset: Dataset, taught: bool, lineage: dict[str, str]) -> Inputs:
    """Inputs of distill, for settings with the run's engine.

    Args:
        settings: Of the run.
        dataset: The run's.
        taught: Whether the student learns from a teacher.
        lineage: Its `student_lineage`. The checksum of labels that are written is `labels_made`, beside the settings that they follow.
    """
    return {
        "engine": _engine(settings),
        **distillation_settings(settings, taught),
        "select_by": _select_by(settings, dataset),
        "run": {"seed": settings.run.seed},
        **{LABELS_MADE if name == "labels" else name: checksum for name, checksum in lineage.items()},
    }


def up_to_date(made_with: Inputs, now: Inputs) -> Inputs:
    """The inputs of a record as this version would have written them, to compare them with those of now.

    Records of a student had the checksum of written labels in the place of the labels' settings, of which they said nothing. Before
    `export.map_untouched` the bundle had the student's own vectors of all items.

    Args:
        made_with: Of a record, of this or an earlier version.
        now: Of the same stage now.
    """
    if "export" in now and "export" not in made_with:
        return {**made_with, "export": UNMAPPED}
    if not isinstance(made_with.get("labels"), str):
        return made_with
    return {**made_with, "labels": now.get("labels"), LABELS_MADE: made_with["labels"]}


def evaluation_inputs(settings: Settings, dataset: Dataset, student: JsonObject) -> Inputs:
    """Inputs of evaluate, which ranks by the bundle's vectors too; `student` is the trained student's manifest."""
    return {"evaluation": as_dict(settings.evaluation), **bundle_inputs(settings, dataset, student)}


def bundle_inputs(settings: Settings, dataset: Dataset, student: JsonObject) -> Inputs:
    """Inputs of export, its settings where they change something; `student` is the trained student's manifest."""
    maps = bool(dataset.modalities) and dataset.manifest["items_without_train"] > 0
    exported = {"export": as_dict(settings.export)} if maps else {}
    return {**exported, "student": manifest_digest(student), "dataset": dataset.digest}


def _engine(settings: Settings) -> Inputs:
    """The engine, with those of its settings that decide a result."""
    if not samples(settings):
        return {"engine": "full"}
    excluded = {"exclude_seed_edges": True} if settings.sampling.exclude_seed_edges else {}
    return {"engine": "sampled", "fan_outs": settings.sampling.fan_outs, **excluded}


def _select_by(settings: Settings, dataset: Dataset) -> str | None:
    """The metric that chooses an epoch; None where there is no validation split to choose on."""
    return settings.evaluation.select_by if dataset.has_split("validation") else None
